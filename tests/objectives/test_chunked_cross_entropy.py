"""Chunks of any size give what autograd gives on all logits at once."""

import pytest
import torch

from selfpatch.objectives import self_distillation
from selfpatch.objectives.self_distillation import chunked_cross_entropy


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 100])
@pytest.mark.parametrize("fixed_prototypes", [False, True])
def test_loss_and_gradients(rows_at_once, fixed_prototypes, monkeypatch):
    num_prototypes = 11
    monkeypatch.setattr(self_distillation, "CHUNK_SIZE", rows_at_once * num_prototypes)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(7, num_prototypes, generator=generator).softmax(dim=-1)
    targets[2:4] *= 2  # a sum of two targets
    bottleneck = torch.randn(7, 5, generator=generator)
    prototypes = torch.randn(num_prototypes, 5, generator=generator)
    gradients, losses, seen = [], [], []
    for chunked in (True, False):
        z, w = bottleneck.clone().requires_grad_(), prototypes.clone().requires_grad_(not fixed_prototypes)
        if chunked:
            loss = chunked_cross_entropy(z, w, lambda rows: seen.append(rows) or targets[rows], temperature=0.1)
        else:
            loss = -(targets * (z @ w.T / 0.1).log_softmax(dim=-1)).sum()
        (3 * loss).backward()
        losses.append(loss.detach())
        gradients.append((z.grad, w.grad))
    torch.testing.assert_close(*losses)
    assert (gradients[0][0] - gradients[1][0]).norm() <= 1e-5 * gradients[1][0].norm()
    if fixed_prototypes:
        assert gradients[0][1] is None
    else:
        assert (gradients[0][1] - gradients[1][1]).norm() <= 1e-5 * gradients[1][1].norm()
    assert len(seen) == -(-7 // rows_at_once)


def test_large_logits_stay_finite():
    z, w = torch.eye(4) * 300, torch.eye(4)
    loss = chunked_cross_entropy(z.requires_grad_(), w, lambda rows: torch.eye(4)[rows], temperature=0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
