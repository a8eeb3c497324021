"""Every frozen task on every kind of backbone, at sizes that are not square, alone and all at once from the disk."""

import json

import pytest
from torch import nn

from selfpatch.cli import main
from selfpatch.evaluation import all_frozen
from selfpatch.evaluation.feature_cache import CachedBackbone
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.all_frozen import AllFrozen
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation, LinearSegmentation
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import TASK_RUNNERS, run_task
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit
from tests.evaluation.boxed_scenes import write_voc
from tests.evaluation.labeled_classes import write_classes
from tests.evaluation.labeled_scenes import write_ade20k
from tests.evaluation.moving_shapes import write_davis

FAMILIES = {
    "class token": lambda: small_vit("class token"),
    "no class token": lambda: small_vit("no class token"),
    "registers": lambda: small_vit("registers"),
    "RoPE and registers": lambda: small_vit("RoPE and registers"),
    "Swin": small_swin,
}
# Images and videos have sides that are not equal, and no whole patches of 14, 16 or 32.
SMALL = {
    "in-context-segmentation": InContextSegmentation(
        image_size=64, resize="keep_aspect", memory_size=60, num_neighbors=5
    ),
    "linear-segmentation": LinearSegmentation(image_size=64, stride=40, steps=1, batch_size=1, warmup_steps=0),
    "overclustering": Overclustering(image_size=64, num_clusters=("classes", 5), num_seeds=1, num_restarts=1),
    "video-segmentation": VideoSegmentation(image_size=70, long_side_multiple=35),
    "object-discovery": ObjectDiscovery(),
    "knn-classification": KnnClassification(resize_size=70, image_size=64, num_neighbors=(2,)),
    "linear-classification": LinearClassification(resize_size=70, image_size=64, lrs=(0.1,), steps=1, batch_size=2),
}
DATA = {"video-segmentation": "videos", "object-discovery": "boxes"}
DATA |= {"knn-classification": "classes", "linear-classification": "classes"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_ade20k(root / "masks", num_train=1, num_val=2, size=(72, 104))
    write_classes(root / "classes", num_classes=2, num_train=2, num_val=1)
    write_voc(root / "boxes", count=2, size=(72, 136))
    write_davis(root / "videos", videos=("ball",), num_frames=3)
    return root


def test_all_frozen_tasks_are_here():
    assert SMALL.keys() == all_frozen.DATA_MATCHERS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_takes_every_family_and_the_same_from_disk(family, data, tmp_path):
    backbone: nn.Module = FAMILIES[family]()
    has_class_token = family not in ("no class token", "Swin")
    details = {}
    for task, protocol in SMALL.items():
        root = data / DATA.get(task, "masks")
        plain = TASK_RUNNERS[task](backbone, root, protocol, EvalContext(tmp_path / task))
        assert all(0 <= value <= 1 for name, value in plain.metrics.items() if "Decay" not in name)
        details[task] = plain.details
        for i in range(2):  # written, then read
            cached = CachedBackbone(backbone, tmp_path / "features", max_bytes=1e8)
            again = TASK_RUNNERS[task](cached, root, protocol, EvalContext(tmp_path / f"{task} {i}"))
            assert again.metrics == pytest.approx(plain.metrics, abs=1e-6)
        assert cached.num_found > 0 and cached.num_encoded == 0
    assert details["knn-classification"]["vector_scored"] == ("class_token" if has_class_token else "mean")
    both = ["class_token", "class_token_and_mean"]
    assert details["linear-classification"]["vectors_scored"] == (both if has_class_token else ["mean"])
    leopart = LeopartSegmentation(image_size=70, mask_size=20, epochs=1, batch_size=1)
    assert (
        TASK_RUNNERS["linear-segmentation"](backbone, data / "masks", leopart, EvalContext(tmp_path)).metrics["mIoU"]
        > 0
    )


@pytest.fixture
def small_presets(monkeypatch):
    for task, protocol in SMALL.items():
        monkeypatch.setitem(TASKS, task, TASKS[task]._replace(presets={"quick": protocol}))


def test_all_at_once_then_side_by_side(data, tmp_path, small_presets, capsys):
    backbone = small_vit("registers")
    for i in range(2):
        context = EvalContext(tmp_path / f"out{i}", model=f"model {i}")
        settings = AllFrozen(protocols="quick", cache=tmp_path / "features")
        result = run_task("all-frozen", backbone, data, settings, context)
    assert [name.partition("/")[0] for name in result.metrics] == list(SMALL)
    assert "features: 0 times encoded" in capsys.readouterr().out.splitlines()[-1]
    for task in SMALL:
        written = json.loads((tmp_path / "out1" / task / "result.json").read_text())
        headline, value = next(iter(written["metrics"].items()))
        assert result.metrics[f"{task}/{headline}"] == value
        assert (tmp_path / "out1" / task / "pictures").is_dir()
    assert main(["compare", str(tmp_path / "out0"), str(tmp_path / "out1"), "--out", str(tmp_path / "t.csv")]) == 0
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert header.count(",") == len(SMALL) and [row.split(",")[0] for row in rows] == ["model 0", "model 1"]


def test_what_the_data_do_not_allow(data, tmp_path, small_presets):
    backbone = small_vit("class token")
    with pytest.raises(
        ValueError, match="neither .* nor a folder in it holds the data of(.|\n)*video-segmentation: videos"
    ):
        all_frozen.find_tasks(data / "classes", ("video-segmentation",))
    with pytest.raises(ValueError, match="unknown frozen task 'mask-rcnn'"):
        all_frozen.find_tasks(data, ("mask-rcnn",))
    broken = write_davis(tmp_path / "data" / "videos", videos=("ball",), num_frames=3)
    next((broken / "Annotations").rglob("*.png")).unlink()
    write_classes(tmp_path / "data" / "classes", num_classes=2, num_train=2, num_val=1)
    result = run_task(
        "all-frozen", backbone, tmp_path / "data", AllFrozen(protocols="quick"), EvalContext(tmp_path / "out")
    )
    assert {name.partition("/")[0] for name in result.metrics} == {"knn-classification", "linear-classification"}
    (note,) = result.notes
    assert note.startswith("video-segmentation was left out: ")


def test_layers_of_another_model_end_it(data, tmp_path, small_presets):
    context = EvalContext(tmp_path / "out")
    settings = AllFrozen(protocols="quick", tasks=("linear-segmentation",))
    run_task("all-frozen", small_vit("class token"), data, settings, context)
    with pytest.raises(ValueError, match="holds a head that was trained otherwise"):
        run_task("all-frozen", small_vit("registers"), data, settings, context)


def test_results_of_a_task_that_is_left_out_do_not_stay(data, tmp_path, small_presets):
    root = tmp_path / "data"
    write_davis(root / "videos", videos=("ball",), num_frames=3)
    write_classes(root / "classes", num_classes=2, num_train=2, num_val=1)
    context = EvalContext(tmp_path / "out")
    settings = AllFrozen(protocols="quick", tasks=("video-segmentation", "knn-classification"))
    run_task("all-frozen", small_vit("class token"), root, settings, context)
    next((root / "videos" / "Annotations").rglob("*.png")).unlink()
    run_task("all-frozen", small_vit("registers"), root, settings, context)
    assert [path.parent.name for path in sorted((tmp_path / "out").glob("*/result.json"))] == ["knn-classification"]


@pytest.mark.parametrize("fault", [ValueError("zip() argument 2 is longer than argument 1"), KeyError("method")])
def test_a_fault_of_the_program_is_not_booked_as_left_out(fault, data, tmp_path, small_presets, monkeypatch):
    def fail(*arguments):
        raise fault

    monkeypatch.setitem(TASK_RUNNERS, "knn-classification", fail)
    with pytest.raises(type(fault)):
        run_task(
            "all-frozen", small_vit("class token"), data, AllFrozen(protocols="quick"), EvalContext(tmp_path / "out")
        )
