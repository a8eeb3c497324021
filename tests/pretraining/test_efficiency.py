"""Settings of `efficiency` do not change results: each against the plain step, with the same samples dropped."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from selfpatch.backbones import vit
from selfpatch.config import EfficiencyConfig
from selfpatch.pretraining.student_teacher import apply_efficiency
from selfpatch.pretraining.views import Views
from selfpatch.training.precision import autocast_for
from tests.reference.plain_step import plain_loss
from tests.reference.plain_stochastic_depth import make_plain
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


def gradients(student_teacher) -> dict[str, torch.Tensor]:
    # Keys' biases have no gradient but rounding.
    named = student_teacher.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and not n.endswith(("k.bias", "qkv.bias"))}


@pytest.fixture(scope="module")
def plain() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    student_teacher = tiny_student_teacher(tiny_config()).train()
    make_plain(student_teacher.student.backbone.model.blocks)
    torch.manual_seed(3)
    loss, *_ = plain_loss(student_teacher, *random_crops(tiny_config()), 0)
    loss.backward()
    return loss.detach(), gradients(student_teacher)


def step(efficiency: EfficiencyConfig, precision: str = "float32") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    student_teacher = tiny_student_teacher(tiny_config()).train()
    apply_efficiency(student_teacher, efficiency)
    torch.manual_seed(3)
    with autocast_for(precision, torch.device("cpu"))():
        loss, _ = student_teacher(Views(*random_crops(tiny_config())), 0)
    loss.backward()
    assert loss.dtype == torch.float32
    return loss.detach(), gradients(student_teacher)


@pytest.mark.slow
# torch.compile looks at what it should not, and says so itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing_and_compile(checkpointing, compiled, plain, monkeypatch):
    """Stochastic depth too drops the same samples. Compiled by tracing alone: inductor takes a minute here."""
    compile_blocks = vit.compile_blocks
    monkeypatch.setattr(vit, "compile_blocks", lambda blocks, backend: compile_blocks(blocks, backend and aot_eager))
    loss, ours = step(EfficiencyConfig(activation_checkpointing=checkpointing, compile=compiled))
    torch.testing.assert_close(loss, plain[0], rtol=1e-6, atol=1e-6)
    assert ours.keys() == plain[1].keys()
    for name, gradient in ours.items():
        assert (gradient - plain[1][name]).norm() <= 1e-5 * plain[1][name].norm(), name


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_bf16(checkpointing, plain):
    """Eight bits of precision: losses agree to a thousandth, and gradients point the same way."""
    loss, ours = step(EfficiencyConfig(activation_checkpointing=checkpointing), precision="bf16")
    assert loss.item() == pytest.approx(plain[0].item(), rel=1e-3)
    assert not torch.equal(loss, plain[0])
    a, b = (torch.cat([g.flatten() for g in gradient.values()]) for gradient in (ours, plain[1]))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.995
    assert a.norm() / b.norm() == pytest.approx(1, abs=0.02)
