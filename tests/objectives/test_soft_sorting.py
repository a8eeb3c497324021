"""Soft sorting against comparisons one by one, and that it sorts."""

import pytest
import torch

from selfpatch.objectives.soft_sorting import NETWORKS, SoftSorting
from tests.reference.plain_neco import order_of

SQUARES = [side**2 for side in range(2, 9)]


def values_of(count: int, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count", [4, 9, 16, 25])
def test_permutation_matrices_equal_comparisons_one_by_one(kind, count):
    values = values_of(count, rows=3)
    matrices = SoftSorting(kind, count)(values, 7.0)
    for row in range(3):
        expected = order_of(list(values[:, row]), kind, 7.0)
        torch.testing.assert_close(matrices[..., row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count", SQUARES)
def test_steep_comparisons_sort(kind, count):
    """By the 0-1 principle a network that sorts all zeros and ones sorts everything; here random ones of every number."""
    values = values_of(count, rows=200)
    values = torch.cat([values, (values > torch.linspace(-1, 1, 200)).double() + 1e-3 * values], dim=1)
    matrices = SoftSorting(kind, count)(values, 1e12)
    torch.testing.assert_close((matrices * values).sum(dim=1), values.sort(dim=0).values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_shares_of_places_and_of_values_add_up_to_one(kind):
    matrices = SoftSorting(kind, 49)(values_of(49, rows=5).float(), 100.0)
    assert matrices.min() >= 0
    for axis in (0, 1):
        torch.testing.assert_close(matrices.sum(dim=axis), torch.ones(49, 5), rtol=1e-4, atol=1e-4)
    assert not SoftSorting(kind, 9).state_dict()


def test_two_values_by_hand():
    """3 and 1 at steepness 1/2: they are swapped by 1/2 + arctan(1) / pi = 3/4."""
    matrices = SoftSorting("odd_even", 2)(torch.tensor([[3.0], [1.0]]), 0.5)
    # Two turns, of which the second compares nothing.
    torch.testing.assert_close(matrices[..., 0], torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
