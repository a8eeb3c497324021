"""Scores, pictures and figures of places on a GPU are those of the CPU."""

from pathlib import Path

import pytest

from benchmarks import shortcut
from selfpatch.commands.evaluate import evaluate
from selfpatch.commands.visualize import visualize
from selfpatch.demo.scenes import write_scenes
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from tests.gpu.devices import GPU, THEIR_WARNINGS
from tests.small_models import tiny_config, tiny_student_teacher

pytestmark = THEIR_WARNINGS

MODEL = "timm:vit_tiny_patch16_224"
PROTOCOLS = {
    "in-context-segmentation": InContextSegmentation(image_size=96, memory_size=2000),
    "linear-segmentation": LinearSegmentation(image_size=96, stride=64, steps=20, batch_size=4, warmup_steps=2),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=6, num_train=12, num_val=6, size=96, seed=0)
    return folder


@pytest.mark.parametrize("task", PROTOCOLS)
@pytest.mark.parametrize("device", [GPU])
def test_scores(task, device, scenes, tmp_path):
    expected, ours = (
        evaluate(
            MODEL, task=task, data=scenes / "ade20k", out=tmp_path / there, protocol=PROTOCOLS[task], device=there
        ).metrics
        for there in ("cpu", device)
    )
    assert ours["mIoU"] == pytest.approx(expected["mIoU"], abs=0.02)
    assert ours["aAcc"] == pytest.approx(expected["aAcc"], abs=0.02)


@pytest.mark.parametrize("device", [GPU])
def test_pictures(device, scenes, tmp_path):
    paths = visualize(MODEL, scenes / "images", tmp_path / "pictures", count=2, image_size=96, device=device)
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("device", [GPU])
def test_figures_of_places(device, scenes):
    figures = []
    for there in ("cpu", device):
        student_teacher = tiny_student_teacher(tiny_config()).eval().to(there)
        model = shortcut.Model("tiny", student_teacher.teacher.export_backbone(), student_teacher, 0)
        pixels = shortcut.center_crops(scenes / "images", 32, 6)
        figures.append(shortcut.measure(model, pixels, batch_size=4, num_clusters=4))
    for mode in shortcut.POSITIONS:
        for group in ("variance", "targets"):
            assert figures[1][mode][group] == pytest.approx(figures[0][mode][group], abs=0.02)
