"""Differentiable sorting: a network of comparisons, each of which swaps two values to a degree."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Wires that are compared at the same time: (where the lower value goes, where the higher one goes).
Layer = list[tuple[int, int]]


class SoftSorting(nn.Module):
    """`(values, steepness)` -> permutation matrices: how much each value is at each place of the ascending order.

    A comparison keeps two values by the share 1/2 + arctan(steepness * difference) / pi and swaps them by the rest. The
    steeper, the nearer to plain sorting.

    Source: Petersen et al., "Monotonic differentiable sorting networks" (ICLR 2022), the Cauchy distribution.
    """

    wires: Tensor  # [layers, n]: those of lower values, those of higher ones, those that rest
    places: Tensor  # [layers, n]: where each wire is found in that order

    def __init__(self, kind: str, num_values: int):
        super().__init__()
        layers = NETWORKS[kind](num_values)
        self._num_pairs = [len(layer) for layer in layers]
        orders = []
        for layer in layers:
            compared = [low for low, _ in layer] + [high for _, high in layer]
            orders.append(compared + sorted(set(range(num_values)) - set(compared)))
        self.register_buffer("wires", torch.tensor(orders), persistent=False)
        self.register_buffer("places", torch.tensor(orders).argsort(dim=-1), persistent=False)

    def forward(self, values: Float[Tensor, "n rows"], steepness: float) -> Float[Tensor, "n n rows"]:
        """First axis: place in the order; second axis: value. Both sum to 1."""
        matrices = torch.eye(len(values), device=values.device, dtype=values.dtype)[..., None]
        matrices = matrices.expand(-1, -1, values.shape[1])
        for wires, places, num_pairs in zip(self.wires, self.places, self._num_pairs, strict=True):
            parts = [num_pairs, num_pairs, len(values) - 2 * num_pairs]
            low, high, rest = values[wires].split(parts)
            kept = 0.5 + torch.atan(steepness * (high - low)) / math.pi
            swapped = 1 - kept
            values = torch.cat([kept * low + swapped * high, swapped * low + kept * high, rest])[places]
            low, high, rest = matrices[wires].split(parts)
            kept, swapped = kept[:, None], swapped[:, None]
            matrices = torch.cat([kept * low + swapped * high, swapped * low + kept * high, rest])[places]
        return matrices


def odd_even(num_values: int) -> list[Layer]:
    """Turns of comparing wires (0, 1), (2, 3), ... and (1, 2), (3, 4), ..."""
    return [[(wire, wire + 1) for wire in range(turn % 2, num_values - 1, 2)] for turn in range(num_values)]


def bitonic(num_values: int) -> list[Layer]:
    """The network of the next power of two without its first wires: right for the squares of 2 to 8 (see the test)."""
    num_stages = math.ceil(math.log2(num_values))
    left_out = 2**num_stages - num_values
    layers = []
    for stage in range(num_stages):
        for distance in (2**i for i in range(stage, -1, -1)):
            layer = []
            for wire in range(left_out, 2**num_stages):
                if not wire & distance:
                    pair = wire - left_out, wire + distance - left_out
                    # Blocks of twice the stage's size are sorted upwards and downwards by turns.
                    layer.append(pair[::-1] if wire >> (stage + 1) & 1 else pair)
            layers.append(layer)
    return layers


NETWORKS = {"bitonic": bitonic, "odd_even": odd_even}
