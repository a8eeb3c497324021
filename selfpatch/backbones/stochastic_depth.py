"""How a vision transformer's blocks run while it is trained: dropped samples are skipped, branches can be compiled."""

import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfpatch.backbones.activation_recompute import recompute_outputs


class SubsetDropPathBlock(nn.Module):
    """A pre-norm block, x + attention(x), then x + mlp(x), whose branches see only the samples that keep them.

    Stochastic depth multiplies a sample's branch by 0 or by 1 / (share kept); timm computes it in either case. No
    branch mixes samples, so leaving out what is multiplied by 0 gives the same outputs and gradients.
    """

    branches: tuple[Callable[..., Tensor], Callable[..., Tensor]]
    # timm's
    norm1: nn.Module
    norm2: nn.Module
    mlp: Any
    # With which of torch.compile's backends the branches are compiled; None: not at all.
    compiler: str | Callable | None = None
    # Whether the backward pass makes again what norms and activation functions made. Compiled branches do so anyway.
    recomputes_activations = False

    def forward(self, x: Float[Tensor, "B T D"], **attn_kwargs: Any) -> Float[Tensor, "B T D"]:
        attention, mlp = self.branches
        x = x.contiguous()  # the patch embedding leaves channels first, and adding keeps that for all blocks to come
        x = self._add(x, functools.partial(self._run, attention, **attn_kwargs), self.drop_path1)
        return self._add(x, functools.partial(self._run, mlp), self.drop_path2)

    def _add(
        self, x: Float[Tensor, "B T D"], branch: Callable[[Tensor], Tensor], drop_path: nn.Module
    ) -> Float[Tensor, "B T D"]:
        drop_prob = getattr(drop_path, "drop_prob", 0.0)  # an Identity has none
        if drop_prob == 0 or not self.training:
            return x + branch(x)
        # Drawn on the CPU whatever the device: how many samples are kept is then known without waiting for a GPU.
        kept = (torch.rand(len(x)) >= drop_prob).nonzero().squeeze(1)
        scale = 1 / (1 - drop_prob)
        if len(kept) == 0:  # some kernels refuse an empty batch: one sample, times 0
            kept, scale = torch.zeros(1, dtype=torch.int64), 0.0
        kept = kept.to(x.device, non_blocking=True)
        return x.index_add(0, kept, branch(x[kept]).to(x.dtype), alpha=scale)

    def _run(
        self, branch: Callable[..., Tensor], x: Float[Tensor, "b T D"], **attn_kwargs: Any
    ) -> Float[Tensor, "b T D"]:
        if self.compiler is None:
            with (
                recompute_outputs(self._recomputed_modules())
                if self.recomputes_activations and torch.is_grad_enabled()
                else nullcontext()
            ):
                return branch(self, x, **attn_kwargs)
        # One graph a crop size: tokens are counted when it is compiled, samples when it runs.
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch._dynamo.mark_static(x, (1, 2))
        return _compiled(branch, self.compiler)(self, x, **attn_kwargs)

    def _recomputed_modules(self) -> list[nn.Module]:
        return [self.norm1, self.norm2, self.mlp.act]


# The branches are functions of their own, which all blocks of a network share and so compile once. They are not checked
# by the tests' type checker, which torch.compile cannot read.


@no_type_check
def _attention(block, x, **attn_kwargs):
    return block.ls1(block.attn(block.norm1(x), **attn_kwargs))


@no_type_check
def _mlp(block, x):
    return block.ls2(block.mlp(block.norm2(x)))


@no_type_check
def _eva_attention(block, x, **attn_kwargs):
    x = block.attn(block.norm1(x), **attn_kwargs)
    return x if block.gamma_1 is None else block.gamma_1 * x


@no_type_check
def _eva_mlp(block, x):
    x = block.mlp(block.norm2(x))
    return x if block.gamma_2 is None else block.gamma_2 * x


class SkippingViTBlock(SubsetDropPathBlock, Block):
    branches = (_attention, _mlp)


class SkippingEvaBlock(SubsetDropPathBlock, EvaBlock):
    branches = (_eva_attention, _eva_mlp)


SUBSET_BLOCKS = {Block: SkippingViTBlock, EvaBlock: SkippingEvaBlock}


def use_subset_drop_path(blocks: Iterable[nn.Module]) -> None:
    """Let timm's blocks skip what stochastic depth drops, in place; weights and names stay. Others are left alone."""
    for block in blocks:
        # The subclass changes nothing but `forward`.
        block.__class__ = SUBSET_BLOCKS.get(type(block), type(block))


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable | None = "inductor") -> None:
    """Compile the branches of these blocks when they next run; None: run them as they are."""
    for block in blocks:
        block.compiler = backend


@functools.cache
def _compiled(branch: Callable[..., Tensor], backend: str | Callable) -> Callable[..., Tensor]:
    return torch.compile(branch, backend=backend)
