"""Selective activation checkpointing: save inputs of norms and activation functions, recompute outputs in backward.

It rests on three properties of autograd, which tests/backbones/test_selective_checkpointing.py holds:

1. Whatever an operation saves for backward passes through the innermost `saved_tensors_hooks` at that moment, as the
   very tensor or a view of it, so that its storage tells which module made it.
2. A live `untyped_storage()` is one Python object, so that `id` identifies it as long as somebody holds it.
3. `Tensor._version` grows with every change in place, so that an input or weight that changed since is noticed.

torch.compile traces neither (compiled branches recompute by its own partitioner), and parameter sharding replaces
weights between forward and backward; it is off under both.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def recompute_outputs(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, save the inputs of these modules wherever autograd would save their outputs.

    A linear layer saves its input for backward, and the norm or activation function before it saves its own input, from
    which the other can be recomputed without a matrix product: in a block of a vision transformer 6 of 16 tensors as
    wide as a token. Under autocast the layer after a norm saves a cast of the norm's output, which stays. Gradients are
    equal bit for bit.

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
    """Stand-in for a saved output: its module, the module's input, and the layout of the view that was saved."""

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
