"""The aggregator against class attention as it is written: every token projected, sets gathered before they are."""

import pytest
import torch

from selfpatch.config import AggregatorConfig
from selfpatch.objectives.class_attention import Aggregator
from tests.reference.plain_step import aggregate


def trained_aggregator(num_blocks: int) -> Aggregator:
    """All parameters random: at the start biases are 0, and what they do would not show."""
    torch.manual_seed(0)
    aggregator = Aggregator(24, 3, AggregatorConfig(num_blocks=num_blocks))
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return aggregator


def gradients(aggregator: Aggregator, tokens: torch.Tensor, out: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(aggregator.named_parameters()) | {"tokens": tokens}
    found = torch.autograd.grad(out.square().sum(), named.values())
    # Adding the same number to all scores changes no softmax: the keys' bias has no gradient but rounding.
    return {name: value for name, value in zip(named, found, strict=True) if not name.endswith("attn.k.bias")}


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 24), (1, 9, 24), (5, 12, 24)])
@pytest.mark.parametrize("sets", [False, True])
def test_equals_the_plain_form(num_blocks, shape, sets):
    aggregator = trained_aggregator(num_blocks)
    tokens = torch.randn(shape, requires_grad=True)
    if sets:
        members = torch.randint(0, shape[1], (*shape[:2], 4))
        ours = aggregator(tokens, members)
        batch = torch.arange(shape[0])[:, None, None]
        plain = aggregate(aggregator, tokens[batch, members].flatten(0, 1)).unflatten(0, shape[:2])
    else:
        ours, plain = aggregator.image_token(tokens), aggregate(aggregator, tokens)
    assert (ours - plain).norm() <= 1e-6 * plain.norm()
    expected = gradients(aggregator, tokens, plain)
    for name, gradient in gradients(aggregator, tokens, ours).items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
