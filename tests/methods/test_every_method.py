"""One body over every method, alone and with SelfPatch, on every family of backbones. A method is a row of METHODS."""

import copy
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from selfpatch.objectives.projection_heads import BatchNorm
from selfpatch.output import checkpoint
from tests.methods.small_methods import CELLS, NUM_STEPS, Trainer, small_config

pytestmark = pytest.mark.slow
SAVED_AT = NUM_STEPS - 2


class Trained(NamedTuple):
    """A run of 30 steps: as it is at the end, its losses, and the folder of its checkpoint of step 28."""

    trainer: Trainer
    losses: list[float]
    saved: Path


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: " ".join([cell.method, cell.added, "on", cell.backbone]))
def cell(request):
    return request.param


@pytest.fixture(scope="module")
def trained(cell, tmp_path_factory) -> Trained:
    trainer = Trainer(small_config(cell))
    losses = trainer.train(SAVED_AT)
    state = trainer.state.state() | {"method": {}}
    saved = checkpoint.save(tmp_path_factory.mktemp("run"), SAVED_AT, trainer.state.tensors(), state, keep=1)
    return Trained(trainer, losses + trainer.train(NUM_STEPS), saved)


def test_the_loss_falls(trained):
    assert all(map(math.isfinite, trained.losses))
    first, last = (sum(losses) / 3 for losses in (trained.losses[:3], trained.losses[-3:]))
    assert last < 0.8 * first, (first, last)


def test_a_run_that_goes_on_ends_bit_for_bit_as_the_unbroken_one(trained, cell):
    other = Trainer(small_config(cell))
    other.state.load(checkpoint.load(trained.saved))
    assert other.state.step == SAVED_AT
    assert other.train(NUM_STEPS) == trained.losses[SAVED_AT:]
    ours, theirs = (trainer.state.tensors() for trainer in (other, trained.trainer))
    for file in ("model", "optimizer"):
        assert ours[file].keys() == theirs[file].keys()
        assert not [name for name, value in ours[file].items() if not torch.equal(value, theirs[file][name])]


@pytest.fixture(scope="module")
def first_step(cell) -> tuple[Trainer, Tensor]:
    """Gradients of the first step, not applied, and its loss."""
    trainer = Trainer(small_config(cell))
    before = copy.deepcopy(trainer.student_teacher.state_dict())
    loss = trainer.gradients(0)
    assert all(torch.equal(value, before[name]) for name, value in trainer.student_teacher.state_dict().items())
    return trainer, loss


def test_gradients_reach_all_of_the_student_and_nothing_of_a_teacher(first_step):
    trainer, _ = first_step
    student_teacher = trainer.student_teacher
    teachers = {id(p) for _, teacher in student_teacher.ema_pairs() for p in teacher.parameters()}
    trained = {name: p for name, p in student_teacher.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if not name.endswith("attn.k.bias")]  # adds the same to all scores of a query
    assert not teachers & {id(p) for p in trained.values()}
    assert all(p.grad is None for p in student_teacher.parameters() if id(p) in teachers)


def test_bf16_is_near_float32(first_step, cell):
    other = Trainer(small_config(cell))
    trainer, loss = first_step
    in_bf16 = other.gradients(0, "bf16")
    full, half = flat_gradients(trainer), flat_gradients(other)
    assert torch.isfinite(half).all()
    if any(isinstance(module, BatchNorm) for module in trainer.student_teacher.objectives.modules()):
        # Over four image tokens that are alike it makes roundings large.
        torch.testing.assert_close(in_bf16, loss, rtol=0.1, atol=0.0)
        return
    torch.testing.assert_close(in_bf16, loss, rtol=0.01, atol=0.0)
    assert torch.cosine_similarity(full, half, dim=0) > 0.98


def flat_gradients(trainer: Trainer) -> Tensor:
    parameters = trainer.student_teacher.student.parameters()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
