"""The fast step equals the plain one: loss, every gradient, and what the centres are told."""

import pytest
import torch

from selfpatch.objectives import self_distillation
from selfpatch.pretraining.views import Views
from tests.reference.plain_step import plain_loss
from tests.small_models import random_crops, tiny_config, tiny_student_teacher


@pytest.mark.parametrize("rows_at_once", [7, 10_000])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_gradients_and_centres(batch_size, rows_at_once, monkeypatch):
    monkeypatch.setattr(self_distillation, "CHUNK_SIZE", 24 * rows_at_once)
    config = tiny_config()
    fast, plain = (tiny_student_teacher(config).eval() for _ in range(2))
    for student_teacher in (fast, plain):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student_teacher.teacher.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            for term in student_teacher.objectives.values():
                term.branch.distillation.center.normal_(std=0.05, generator=generator)
    crops = random_crops(config, batch_size=batch_size)

    loss, _ = fast(Views(*crops), 0)
    loss.backward()
    expected, image_mean, patch_mean = plain_loss(plain, *crops, 0)
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and not name.endswith("attn.k.bias"):
            assert (a.grad - b.grad).norm() <= 1e-5 * b.grad.norm(), name
    for name, mean in (("dino", image_mean), ("selfpatch", patch_mean)):
        before = fast.objectives[name].branch.distillation.center.clone()
        fast.objectives[name].commit()
        torch.testing.assert_close(
            fast.objectives[name].branch.distillation.center, 0.9 * before + 0.1 * mean, rtol=1e-5, atol=1e-6
        )
