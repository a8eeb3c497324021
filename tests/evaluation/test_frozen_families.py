"""Every frozen task on every kind of backbone, at sizes that are not square, alone and all at once from the disk."""

import json

import pytest
from torch import nn

from selfpatch.cli import main
from selfpatch.errors import UserError
from selfpatch.evaluation import frozen_tasks
from selfpatch.evaluation.feature_cache import CachedBackbone
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.frozen_tasks import FrozenTasks
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation, LinearSegmentation
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import TASK_RUNNERS
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
    assert SMALL.keys() == frozen_tasks.DATA_MATCHERS.keys()


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
        settings = FrozenTasks(preset="quick", cache=tmp_path / "features")
        done = frozen_tasks.run(backbone, data, settings, context)
    assert list(done.results) == list(SMALL) and done.left_out == {}
    assert "features: 0 times encoded" in capsys.readouterr().out.splitlines()[-1]
    summary = json.loads((tmp_path / "out1/summary.json").read_text())
    assert list(summary["tasks"]) == list(SMALL) and summary["left_out"] == {}
    for task, shown in summary["tasks"].items():
        written = json.loads((tmp_path / "out1" / shown["result"]).read_text())
        assert written["task"] == task and written["metrics"] == done.results[task].metrics
        assert next(iter(written["metrics"].items())) == (shown["metric"], shown["value"])
        assert (tmp_path / "out1" / task / "pictures").is_dir()
    assert main(["compare", str(tmp_path / "out0"), str(tmp_path / "out1"), "--out", str(tmp_path / "t.csv")]) == 0
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert header.count(",") == len(SMALL) and [row.split(",")[0] for row in rows] == ["model 0", "model 1"]


def test_data_that_do_not_fit_are_refused(data):
    says = "neither .* nor a folder in it holds the data of(.|\n)*video-segmentation: videos"
    with pytest.raises(UserError, match=says):
        frozen_tasks.find_tasks(data / "classes", ("video-segmentation",))
    with pytest.raises(UserError, match="unknown frozen task 'mask-rcnn'"):
        frozen_tasks.find_tasks(data, ("mask-rcnn",))
    with pytest.raises(UserError, match="tasks is .*; give at least one"):
        FrozenTasks(tasks=())
    assert [planned.task for planned in frozen_tasks.find_tasks(data, ("knn-classification",))] == [
        "knn-classification"
    ]


@pytest.fixture
def broken_videos(tmp_path):
    root = tmp_path / "data"
    videos = write_davis(root / "videos", videos=("ball",), num_frames=3)
    next((videos / "Annotations").rglob("*.png")).unlink()
    write_classes(root / "classes", num_classes=2, num_train=2, num_val=1)
    return root


def test_a_task_of_incomplete_data_is_left_out(broken_videos, tmp_path, small_presets):
    context = EvalContext(tmp_path / "out")
    done = frozen_tasks.run(small_vit("class token"), broken_videos, FrozenTasks(preset="quick"), context)
    assert set(done.results) == {"knn-classification", "linear-classification"}
    assert list(done.left_out) == ["video-segmentation"] and "have no annotation" in done.left_out["video-segmentation"]
    assert json.loads((tmp_path / "out/summary.json").read_text())["left_out"] == done.left_out
    only_videos = FrozenTasks(preset="quick", tasks=("video-segmentation",))
    with pytest.raises(UserError, match="video-segmentation was left out: "):
        frozen_tasks.run(small_vit("class token"), broken_videos, only_videos, context)


def test_an_error_of_the_program_is_not_left_out(data, tmp_path, small_presets, monkeypatch):
    """zip(strict=True) raises ValueError, as UserError is one."""

    def broken(*arguments):
        return list(zip([1], [1, 2], strict=True))

    monkeypatch.setitem(TASK_RUNNERS, "overclustering", broken)
    with pytest.raises(ValueError, match="zip"):
        frozen_tasks.run(small_vit("class token"), data, FrozenTasks(preset="quick"), EvalContext(tmp_path / "out"))


def test_heads_of_another_model_end_the_run(data, tmp_path, small_presets):
    context = EvalContext(tmp_path / "out")
    settings = FrozenTasks(preset="quick", tasks=("linear-segmentation",))
    frozen_tasks.run(small_vit("class token"), data, settings, context)
    with pytest.raises(UserError, match="holds a head that was trained otherwise"):
        frozen_tasks.run(small_vit("registers"), data, settings, context)


def test_results_of_a_task_that_is_left_out_do_not_stay(broken_videos, tmp_path, small_presets):
    context = EvalContext(tmp_path / "out")
    (tmp_path / "out/video-segmentation").mkdir(parents=True)
    (tmp_path / "out/video-segmentation/result.json").write_text("of an earlier run")
    settings = FrozenTasks(preset="quick", tasks=("video-segmentation", "knn-classification"))
    frozen_tasks.run(small_vit("registers"), broken_videos, settings, context)
    assert [path.parent.name for path in sorted((tmp_path / "out").glob("*/result.json"))] == ["knn-classification"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--tasks", "frozen", "--preset", "quick"],
        ["--task", "all-frozen", "--preset", "quick"],
        ["--task=all-frozen", "--protocols=quick"],
        ["--task", "all-frozen", "--protocols", "quick", "--tasks", "knn-classification", "linear-classification"],
    ],
)
def test_the_command_and_its_former_form(flags, data, tmp_path, small_presets, capsys):
    command = ["evaluate", "timm:vit_tiny_patch16_224", "--data", str(data / "classes"), "--out", str(tmp_path / "out")]
    assert main([*command, *flags, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert ("--task all-frozen is now called --tasks frozen" in printed) == (flags[0] != "--tasks")
    assert {path.parent.name for path in (tmp_path / "out").glob("*/result.json")} == {
        "knn-classification",
        "linear-classification",
    }
    assert "linear-classification" in printed and (tmp_path / "out/summary.json").is_file()


def test_one_task_and_several_are_not_both_asked_for(data, tmp_path, capsys):
    command = ["evaluate", "timm:x", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*command, "--task", "upernet", "--tasks", "frozen"]) == 2
    assert "give --task for one task or --tasks for several, not both" in capsys.readouterr().err
    assert main([*command, "--tasks", "upernet"]) == 2
