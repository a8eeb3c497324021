"""What a norm or an activation function made is made again in the backward pass, instead of being kept until then."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def recompute_outputs(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, whatever autograd would keep of these modules' outputs is kept as their inputs.

    A linear layer keeps its input for the backward pass, and the norm or activation function before it keeps its own
    input, from which that can be made once more without a matrix product: in a block of a vision transformer 6 of 16
    tensors as wide as a token. Under autocast the layer after a norm keeps a cast of its output, which stays. Gradients
    are the same bit for bit.

    Args:
        modules: functions of their first argument alone: no dropout, nothing in place.

    Raises:
        RuntimeError: in the backward pass, an input or a weight was changed since; as autograd does by itself.
    """
    # By storage, as autograd may keep a view; storages are held meanwhile, so that none takes the place of another.
    made: dict[int, tuple[nn.Module, Tensor, torch.UntypedStorage]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        storage = output.untyped_storage()
        made[id(storage)] = module, inputs[0].detach(), storage

    def pack(kept: Tensor) -> "Tensor | RecomputedTensor":
        found = made.get(id(kept.untyped_storage()))
        # Detached: a node that keeps its own output, as attention does, would keep itself alive.
        return kept.detach() if found is None else RecomputedTensor(*found[:2], kept)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(note))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, _unpack))
        yield
        made.clear()


class RecomputedTensor:
    def __init__(self, module: nn.Module, x: Tensor, kept: Tensor):
        self.module, self.x = module, x
        self.layout = kept.size(), kept.stride(), kept.storage_offset()
        self.versions = self._versions()

    @torch.no_grad()
    def tensor(self) -> Tensor:
        if self._versions() != self.versions:
            raise RuntimeError(f"{self.module} or its input was modified by an inplace operation before backward")
        return self.module(self.x).as_strided(*self.layout)

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in (self.x, *self.module.parameters())]


def _unpack(kept: Tensor | RecomputedTensor) -> Tensor:
    return kept.tensor() if isinstance(kept, RecomputedTensor) else kept
