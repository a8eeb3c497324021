import dataclasses
import json

import pytest
from PIL import Image

from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import Context
from selfpatch.evaluation.tasks import RUN, run_task
from tests.evaluation.labelled_scenes import ColorBackbone, write_ade20k

SMALL = {
    "in-context-segmentation": InContextSegmentation(image_size=32, memory_size=500, max_images=5),
    "linear-segmentation": LinearSegmentation(
        image_size=32, stride=20, steps=3, batch_size=2, warmup_steps=1, max_images=5
    ),
}


def test_every_task_has_protocols():
    assert RUN.keys() == TASKS.keys() == SMALL.keys()
    for name, task in TASKS.items():
        assert any(type(preset) is type(SMALL[name]) for preset in task.presets.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_writes_its_result_and_pictures(tmp_path, name):
    root = write_ade20k(tmp_path / "data")
    out = tmp_path / "out"
    result = run_task(name, ColorBackbone(), root, SMALL[name], Context(out), model="colours")
    written = json.loads((out / "result.json").read_text())
    assert list(written) == ["task", "protocol", "metrics", "model", "data", "seconds", "versions", "notes"]
    assert written == json.loads(json.dumps(dataclasses.asdict(result)))
    assert (written["task"], written["model"], written["data"]) == (name, "colours", str(root))
    settings = dataclasses.asdict(SMALL[name])
    assert {key: written["protocol"][key] for key in settings} == json.loads(json.dumps(settings))
    assert written["protocol"]["name"] == "custom"
    assert (written["protocol"]["num_train_images"], written["protocol"]["num_val_images"]) == (5, 3)
    assert written["versions"]["torch"] and written["seconds"] > 0
    assert 0 <= written["metrics"]["mIoU"] <= written["metrics"]["mIoU-matched"] <= 1
    assert {f"IoU/{c}" for c in range(1, 5)} <= written["metrics"].keys()
    with Image.open(out / "pictures/predictions_1.png") as sheet:
        assert sheet.size[0] > 1000


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    result = Result("task", {}, {"mIoU": 0.5}, "model", "data", 1.0, {})
    result.write(path)
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(result, metrics={"mIoU": float("nan")}).write(path)
    assert json.loads(path.read_text())["metrics"] == {"mIoU": 0.5}
    assert list(tmp_path.iterdir()) == [path]
