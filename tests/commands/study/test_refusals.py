"""What a study refuses: one paragraph, exit code 2, nothing written; before anything is trained."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.study.conftest import CONFIG
from tests.refusals import Refused


@pytest.fixture
def refused(capsys, data, tmp_path):
    """`study` with these options is refused in words that match every pattern."""
    refusal = Refused(capsys)

    def check(
        *options, says: tuple, images: Path | None = None, labels: Path | None = None, out: Path | None = None,
        settings: tuple[str, ...] = CONFIG.set,
    ) -> str:  # fmt: skip
        out = out or tmp_path / "out"
        arguments = ["study", images or data / "images", out, "--labels", labels or data / "ade20k", "--device", "cpu"]
        return refusal([*arguments, *options, *(["--set", *settings] if settings else [])], *says, out=out)

    return check


@pytest.fixture
def labels(data, tmp_path) -> Path:
    """Those of the scenes, for a test to spoil."""
    return Path(shutil.copytree(data / "ade20k", tmp_path / "labels"))


def test_validation_set_empty(refused, labels):
    for folder in ("images", "annotations"):
        for file in (labels / folder / "validation").iterdir():
            file.unlink()
    refused(labels=labels, says=("validation", "holds no images"))


def test_labels_for_none_of_the_images(refused, labels):
    for file in (labels / "annotations/training").iterdir():
        file.unlink()
    refused(labels=labels, says=("9 of 9 images", "have no mask"))


@pytest.mark.parametrize(("split", "count"), [("training", 9), ("validation", 6)])
def test_masks_without_a_labeled_pixel(refused, labels, split, count):
    for file in (labels / "annotations" / split).iterdir():
        Image.fromarray(np.zeros_like(np.array(Image.open(file)))).save(file)
    refused("--steps", 2, labels=labels, says=(f"none of the {count} {split} images", "has a labeled pixel"))


def test_validation_set_that_overlaps_all_images(refused, data, tmp_path):
    refused(
        images=data / "ade20k/images/validation", out=tmp_path / "new",
        says=("6 of 6 images are validation images", "leaves 0 to train on"),
    )  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_hours_too_few_for_anything(refused):
    says = (r"hours is 0.0001, too few for 6 cells: the least is [\d.]+", "50 steps")
    said = refused("--hours", 1e-4, "--candidates", "random", "dino-small", says=says)
    assert "--seeds" in said
    refused("--hours", 0, says=("hours is 0", "above 0"))


def test_unknown_candidate(refused):
    refused("--candidates", "as-is", "continue-dinno", says=("unknown candidate 'continue-dinno'", "'continue-dino'"))
    refused("--candidates", "random", "continue-dino", says=("continue-dino is about weights", "--init-from"))
    refused("--candidates", "random", "as-is", says=("as-is is about weights",))
    refused("--candidates", "random", says=("one candidate, random,", "two or more"))
    refused("--candidates", "random", "random", says=("candidates is", "once"))


def test_weights_that_do_not_load(refused, tmp_path):
    refused("--init-from", tmp_path / "nowhere.pth", says=("nowhere.pth does not exist",))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    refused("--init-from", tmp_path / "broken.safetensors", says=("broken.safetensors",))


def test_settings_that_are_the_studys_own_or_nobodys(refused):
    refused(settings=("optim.steps=5",), says=("optim.steps=5", "--steps"))
    refused(settings=("evaluate.data=here",), says=("evaluate.data=here", "--labels"))
    refused(settings=("run.stop-at-step=3",), says=("run.stop-at-step=3", "leave it out"))
    refused(settings=("crops.global-size",), says=("name=value",))
    refused(settings=(*CONFIG.set, "objectives.koleo.weight=1"), says=("objectives.koleo.weight", "no group"))
    refused(settings=("crops.globl-size=32",), says=("crops.globl_size", "did you mean"))
    refused(settings=("crops.global-size=36", "backbone.patch-size=8"), says=("multiple of the patch size",))
    refused("--label-shares", 8, says=("label-shares", "all labels"))


def test_out_of_another_study_shows_what_is_other(refused, finished, data, tmp_path):
    same = ["--init-from", data / "weights.safetensors", "--candidates", *CONFIG.candidates, "--steps", 2]
    same += ["--label-shares", 1, 4, 64, "--linear-steps", 2, "--image-size", 48]
    shown = refused(*same, "--seeds", 3, "--hours", 1, out=finished.out, says=("other settings", "new folder"))
    assert [line.strip() for line in shown.splitlines()[1:-1]] == ["hours: 2.0 -> 1.0", "seeds: 2 -> 3"]
    images = Path(shutil.copytree(data / "images", tmp_path / "images"))
    (images / "scene_00000.jpg").unlink()
    refused(*same, "--seeds", 2, images=images, out=finished.out, says=("images.num_images: 24 -> 23", "images.names"))


def test_out_of_something_else(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    refused(says=("not empty and holds no study",))
    (tmp_path / "out/study.json").write_text("[]")
    refused(says=("study.json is not that of a study",))


def test_several_processes(refused, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused(says=("without torchrun",))
