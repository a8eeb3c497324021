"""The backbone rests in the first steps, bit by bit, then trains; and a run that stops meanwhile goes on exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selfpatch.commands.pretrain import pretrain
from selfpatch.config import OptimConfig, TeacherConfig
from selfpatch.errors import UserError
from selfpatch.optim.optimizer import gradient_norms, set_schedules
from selfpatch.output.metric_logger import read_metrics
from selfpatch.pretraining.train_step import accumulate_gradients, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from selfpatch.training.precision import autocast_for
from tests.small_models import random_crops, tiny_config, tiny_student_teacher

# Two steps per epoch, so three steps of rest; the warm-up is one step long.
SETTINGS = {"optim.steps": 6, "optim.freeze_backbone_epochs": 1.5, "optim.layer_decay": 0.5, "efficiency.num_workers": 0, "run.save_every": 1,
            "run.max_to_keep": 10}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def run(images: Path, out: Path, **settings):
    return pretrain(images, out, config=tiny_config(), settings=SETTINGS | settings)


def model_at(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    run(images, out)
    return out


def test_rests_bit_by_bit_and_then_moves(unbroken):
    models = {step: model_at(unbroken, step) for step in (1, 2, 3, 4)}
    for name, tensor in models[1].items():
        if name.startswith(("student.backbone.", "teacher.backbone.")):
            assert torch.equal(tensor, models[2][name]) and torch.equal(tensor, models[3][name]), name
    moved = [not torch.equal(models[3][name], models[4][name]) for name in models[3] if name.startswith("student.b")]
    assert all(moved)
    trained = ("student.aggregator", "objectives.dino.branch.head.mlp")
    assert all(not torch.equal(models[1][n], models[2][n]) for n in models[1] if n.startswith(trained))


def test_its_learning_rate_is_logged(unbroken):
    lines = {line["step"]: line for line in read_metrics(unbroken / "metrics.jsonl") if "backbone_lr" in line}
    rates = [(lines[step]["backbone_lr"], lines[step]["lr"]) for step in range(1, 7)]
    assert [backbone for backbone, _ in rates[:3]] == [0, 0, 0]
    assert all(backbone == lr > 0 for backbone, lr in rates[3:])


@pytest.mark.parametrize("stop", [2, 3])
def test_goes_on_exactly_across_the_end_of_the_rest(images, unbroken, tmp_path, stop):
    for settings in ({"run.stop_at_step": stop}, {}):
        run(images, tmp_path / "run", **settings)
    ours, theirs = (model_at(out, 6) for out in (tmp_path / "run", unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_takes_no_part_in_the_clip_norm():
    """With a common norm heads are clipped as if there were no backbone."""
    config = tiny_config(optim=OptimConfig(batch_size=4, clip_mode="global", freeze_backbone_epochs=1.0))
    student_teacher = tiny_student_teacher(config)
    student_teacher.freeze_backbone(True)
    views = Views(*random_crops(config))
    accumulate_gradients(student_teacher, [views], 0, autocast_for("float32", torch.device("cpu")))
    assert all(p.grad is None for p in student_teacher.student.backbone.parameters())
    others = [p for p in student_teacher.parameters() if p.grad is not None]
    assert len(gradient_norms(list(student_teacher.parameters()))) == len(others)
    student_teacher.freeze_backbone(False)
    assert all(p.requires_grad for p in student_teacher.student.backbone.parameters())


def test_its_rate_rises_after_the_rest():
    """Four steps of rest and a warm-up of five: a fifth, two fifths, ... of the rate of the heads."""
    optim = OptimConfig(batch_size=4, lr=1.0, lr_scaling="none", warmup_epochs=1.25, freeze_backbone_epochs=1.0)
    schedules = build_schedules(optim, TeacherConfig(), num_steps=40, steps_per_epoch=4)
    assert [schedules.backbone(step) for step in range(10)] == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    student_teacher = tiny_student_teacher(tiny_config(optim=optim))
    optimizer = build_optimizer(student_teacher, optim)
    set_schedules(optimizer, lr=1.0, weight_decay=0.0, late_factor=schedules.backbone(6))
    own = {id(p) for p in student_teacher.student.backbone.parameters()}
    rates = {(id(p) in own): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[True] == pytest.approx(0.6 * rates[False])


def test_more_blocks_than_there_are(images, tmp_path):
    with pytest.raises(UserError, match=r"optim.trainable-blocks is 3, and vit_tiny_patch16_224 has 2 blocks"):
        run(images, tmp_path / "run", **{"optim.trainable_blocks": 3})
    assert not (tmp_path / "run").exists()
