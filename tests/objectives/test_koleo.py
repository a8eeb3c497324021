"""KoLeo against distances taken one by one, and that it spreads what lies together."""

import math

import pytest
import torch

from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.objectives.koleo import KoLeo


def views_of(image_tokens: torch.Tensor) -> EncodedViews:
    """[G, B, D] as one network's encodings of which nothing else is read."""
    global_crops = Encoded(None, image_tokens.flatten(0, 1))  # type: ignore[arg-type]
    return EncodedViews.__new__(EncodedViews, image_tokens.shape[1], None, global_crops, None, None, None, None)


def koleo(image_tokens: torch.Tensor) -> torch.Tensor:
    views = views_of(image_tokens)
    loss, _ = KoLeo(image_tokens.shape[-1], KoLeoConfig(), steps_per_epoch=4)(views, views, 0)
    return loss


def test_loss_equals_distances_one_by_one():
    tokens = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    expected = 0.0
    for crop in tokens:
        unit = [(token / token.norm()).tolist() for token in crop]
        nearest = [min(math.dist(a, b) for j, b in enumerate(unit) if i != j) for i, a in enumerate(unit)]
        expected -= sum(math.log(distance) for distance in nearest) / len(nearest)
    assert koleo(tokens).item() == pytest.approx(expected, rel=1e-5)


def test_known_answer():
    """Four directions at right angles in the plane: each is sqrt(2) from its nearest; crops do not see each other."""
    square = torch.tensor([[1.0, 0], [0, 3], [-2, 0], [0, -1]])
    assert koleo(torch.stack([square, square])).item() == pytest.approx(-2 * math.log(math.sqrt(2)), rel=1e-6)


def test_steps_along_the_gradient_spread_a_bundle():
    tokens = torch.ones(1, 8, 3) + 0.05 * torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(0))
    before = koleo(tokens).item()
    for _ in range(100):
        tokens.requires_grad_()
        (gradient,) = torch.autograd.grad(koleo(tokens), tokens)
        tokens = (tokens - 0.05 * gradient).detach()
    assert koleo(tokens).item() < before - 2


def test_equal_images_and_a_single_one_stay_finite():
    for tokens in (torch.ones(2, 4, 3), torch.randn(2, 1, 3)):
        tokens.requires_grad_()
        loss = koleo(tokens)
        (gradient,) = torch.autograd.grad(loss, tokens)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
