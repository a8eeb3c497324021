"""Checkpoints of earlier versions go on, and end where the run that wrote them would have ended."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.commands.pretrain import pretrain
from selfpatch.config.io import read_yaml
from selfpatch.config.renamed import as_begun
from selfpatch.output.metric_logger import read_metrics
from tests.small_models import HEAD, tiny_config

FORMAT_1 = Path(__file__).parent / "checkpoint_format_1"


@pytest.fixture
def images(tmp_path) -> Path:
    """Those of the stored run: checkerboards of random colors, without loss."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for index in range(9):
        colors = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(np.kron(colors, np.ones((8, 8, 1), np.uint8))).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("as_resume", [False, True])
def test_format_1_goes_on_with_the_losses_it_would_have_given(as_resume, images, tmp_path):
    """Optimizer state by position, heads without a branch, settings under their old names: written at step 3 of 8.

    DINO's loss of 0.006 is a difference of float32 numbers of about 10, whose last place it has: by the processor's kernels
    it moves by 0.6e-6 to 1.3e-6, which is more than 1e-4 of it.
    """
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(FORMAT_1 / "config.yaml", out)
    shutil.copytree(FORMAT_1 / "step-00000003", out / "checkpoints" / "step-00000003")
    config = read_yaml(out / "config.yaml")
    if as_resume:
        result = pretrain(images, tmp_path / "new", config=config, resume=out / "checkpoints" / "step-00000003")
    else:
        result = pretrain(images, out, config=config)
    assert result.steps_done == 8
    lines = {line["step"]: line for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line}
    for expected in json.loads((FORMAT_1 / "expected.json").read_text()):
        for name in ("loss", "dino/loss", "selfpatch/loss"):
            assert lines[expected["step"]][name] == pytest.approx(expected[name], rel=1e-4, abs=2e-6), (
                expected["step"],
                name,
            )


def test_a_run_keeps_the_way_in_which_it_froze_its_prototypes():
    head = dataclasses.replace(HEAD, freeze_prototypes_epochs=10_000)
    now = tiny_config()
    begun = dataclasses.replace(
        now, objectives=dataclasses.replace(now.objectives, dino=dataclasses.replace(now.objectives.dino, head=head))
    )
    always = dataclasses.replace(HEAD, freeze_prototypes_epochs="always")
    objectives = {
        name: dataclasses.replace(objective, head=always) for name, objective in now.objectives.given().items()
    }
    now = dataclasses.replace(now, objectives=dataclasses.replace(now.objectives, **objectives))
    kept = as_begun(now, begun).objectives
    assert kept.dino.head.freeze_prototypes_epochs == 10_000
    assert kept.selfpatch.head.freeze_prototypes_epochs == "always"
