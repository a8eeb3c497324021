import dataclasses
import json

import pytest
from PIL import Image

from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import TASK_RUNNERS, run_task
from tests.backbones.small_vits import small_vit
from tests.evaluation.boxed_scenes import ContrastBackbone, write_voc
from tests.evaluation.labeled_classes import write_classes
from tests.evaluation.labeled_scenes import ColorBackbone, write_ade20k

DECODER = {
    "image_size": 32, "stride": 20, "steps": 2, "batch_size": 2, "warmup_steps": 1, "max_images": 5, "head_channels": 8,
}  # fmt: skip

SMALL = {
    "in-context-segmentation": InContextSegmentation(image_size=32, memory_size=500, max_images=5),
    "knn-classification": KnnClassification(resize_size=32, image_size=32, num_neighbors=(2,), max_images=10),
    "linear-classification": LinearClassification(
        resize_size=32, image_size=32, lrs=(0.1,), steps=2, batch_size=3, max_images=10
    ),
    "linear-segmentation": LinearSegmentation(
        image_size=32, stride=20, steps=3, batch_size=2, warmup_steps=1, max_images=5
    ),
    "object-discovery": ObjectDiscovery(max_images=3),
    "overclustering": Overclustering(image_size=32, num_clusters=("classes", 6), num_seeds=1, max_images=5),
    "semantic-fpn": SemanticFPN(fpn_channels=8, **DECODER),
    "upernet": UPerNet(auxiliary_channels=8, **DECODER),
    "video-segmentation": VideoSegmentation(image_size=48, long_side_multiple=8),
}
# Run in tests of their own.
ON_OTHER_DATA = {"mask-rcnn"}

# How its data are written; ADE20K's layout where nothing is said.
WRITE = {
    "knn-classification": write_classes,
    "linear-classification": write_classes,
    "object-discovery": write_voc,
}
SEGMENTATION = ("in-context-segmentation", "linear-segmentation", "semantic-fpn", "upernet")
# These train, and write checkpoints too; of the first two the backbone is trained as well.
FINE_TUNED = ("semantic-fpn", "upernet")
TRAINED = (*FINE_TUNED, "linear-classification", "linear-segmentation")


def test_every_task_has_protocols():
    assert TASK_RUNNERS.keys() == TASKS.keys() == SMALL.keys() | ON_OTHER_DATA
    for name, protocol in SMALL.items():
        assert any(type(preset) is type(protocol) for preset in TASKS[name].presets.values())


# Videos have other data and metrics: see test_video_segmentation.py.
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"video-segmentation"}))
def test_a_task_writes_its_result_and_pictures(tmp_path, name):
    root = WRITE.get(name, write_ade20k)(tmp_path / "data")
    out = tmp_path / "out"
    if name == "object-discovery":
        backbone = ContrastBackbone()
    else:
        backbone = small_vit("class token") if name in FINE_TUNED else ColorBackbone()
    result = run_task(name, backbone, root, SMALL[name], EvalContext(out, model="colors"))
    written = json.loads((out / "result.json").read_text())
    assert list(written) == [
        "task", "protocol", "metrics", "model", "data", "seconds", "versions", "details", "notes", "lower_is_better",
    ]  # fmt: skip
    spreads = ["spread/K=classes", "spread/K=6"]
    assert written["lower_is_better"] == (spreads if name == "overclustering" else [])
    assert written == json.loads(json.dumps(dataclasses.asdict(result)))
    assert (written["task"], written["model"], written["data"]) == (name, "colors", str(root))
    settings = dataclasses.asdict(SMALL[name])
    apart = {field.name for field in dataclasses.fields(SMALL[name]) if not field.compare}
    resolved = settings | ({"precision": "float32"} if "precision" in settings else {})
    kept = {key: value for key, value in json.loads(json.dumps(resolved)).items() if key not in apart}
    assert {key: written["protocol"][key] for key in kept} == kept and not written["protocol"].keys() & apart
    assert written["details"].keys() >= {"model", "device"} | apart
    assert written["protocol"]["name"] == "custom"
    assert written["protocol"].get("num_val_images", written["protocol"].get("num_images")) in (3, 7)
    assert written["versions"]["torch"] and written["seconds"] > 0
    assert all(0 <= value <= 1 for value in written["metrics"].values())
    if name in SEGMENTATION:
        assert written["metrics"]["mIoU"] <= written["metrics"]["mIoU-matched"]
        assert {f"IoU/{c}" for c in range(1, 5)} <= written["metrics"].keys()
        assert (out / "pictures/class_iou.png").is_file()
    for picture in (out / "pictures").rglob("*.png"):
        with Image.open(picture) as sheet:
            assert sheet.size[0] > 500
    assert list((out / "pictures").rglob("*.png"))
    written_files = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    more = ["checkpoints", "metrics.jsonl"] if name in TRAINED else ["boxes.json"] if name == "object-discovery" else []
    assert written_files == sorted(["pictures", "result.json", *more])


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    result = Result("task", {}, {"mIoU": 0.5}, "model", "data", 1.0, {})
    result.write(path)
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(result, metrics={"mIoU": float("nan")}).write(path)
    assert json.loads(path.read_text())["metrics"] == {"mIoU": 0.5}
    assert list(tmp_path.iterdir()) == [path]
