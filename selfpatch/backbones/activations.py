"""Inputs and outputs of modules while a network sees images, by hooks that fit the forward of every family."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Activation(NamedTuple):
    """First input and output of a module in one forward pass."""

    input: Tensor
    output: Tensor


def capture_activations(
    modules: Sequence[nn.Module], network: Callable[[Tensor], Any], images: Float[Tensor, "B C H W"]
) -> list[Activation]:
    """Activations of these modules while the network sees the images."""
    captured: dict[nn.Module, Activation] = {}

    def capture(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured[module] = Activation(inputs[0], output)

    handles = [module.register_forward_hook(capture) for module in set(modules)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [captured[module] for module in modules]
