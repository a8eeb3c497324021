"""Residual blocks for training: batch-subset stochastic depth, selective activation checkpointing, compiled branches.

timm's blocks become these in place, by their class: weights and names stay.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Float
from timm.layers import DropPath
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock
from torch import Tensor, nn

from selfpatch.backbones.selective_checkpointing import recompute_outputs
from selfpatch.distributed import rand_rows

# Graphs of a branch that torch.compile may keep: by stage, shift, crop size, training or not.
MAX_GRAPHS = 64


class Branch(NamedTuple):
    """A residual branch, x + drop_path(function(module, x)), where `module` owns its layers."""

    function: Callable[..., Tensor]
    module: Any
    drop_path: nn.Module
    attn_kwargs: dict[str, Any] = {}  # noqa: RUF012


class SubsetDropPathBlock(nn.Module):
    """A block of residual branches that run only on the samples that stochastic depth keeps.

    Stochastic depth multiplies a sample's branch by 0 or by 1 / (1 - drop probability); timm computes it in either
    case. No branch mixes samples, so leaving out what is multiplied by 0 gives the same outputs and gradients.

    Source: DINOv2's drop_add_residual_stochastic_depth. Differs: each sample is dropped independently.
    """

    # (attention, MLP) of a block that has one of each.
    branches: tuple[Callable[..., Tensor], Callable[..., Tensor]]
    # torch.compile's backend for the branches; None: they run uncompiled.
    compile_backend: str | Callable | None = None
    # True if backward recomputes outputs of norms and activations. Compiled branches do so anyway.
    selective_checkpointing = False
    # On several ranks: images of this one, of whose crops the samples are, crop-major; None: one crop of each.
    num_images: int | None = None

    def residuals(self, **attn_kwargs: Any) -> list[list[Branch]]:
        """Branches in the order in which they run; those of one list see the same input and are summed."""
        attention, mlp = self.branches
        return [[Branch(attention, self, self.drop_path1, attn_kwargs)], [Branch(mlp, self, self.drop_path2)]]

    def recomputed_modules(self) -> list[nn.Module]:
        """Norms and activation functions: functions of their first argument alone, and not in place."""
        block: Any = self
        return [block.norm1, block.norm2, block.mlp.act]

    def forward(self, x: Float[Tensor, "B *T D"], **attn_kwargs: Any) -> Float[Tensor, "B *T D"]:
        x = x.contiguous()  # the patch embedding leaves channels first, and adding keeps that for all blocks to come
        for parallel in self.residuals(**attn_kwargs):
            if len(parallel) > 1 and not self.training:  # added up in timm's order: the same bits
                x = x + torch.stack([self._run(branch, x) for branch in parallel]).sum(dim=0)
                continue
            total = x
            for branch in parallel:
                total = self._add(total, x, branch)
            x = total
        return x

    def _add(
        self, total: Float[Tensor, "B *T D"], x: Float[Tensor, "B *T D"], branch: Branch
    ) -> Float[Tensor, "B *T D"]:
        drop_prob = getattr(branch.drop_path, "drop_prob", 0.0)  # an Identity has none
        if drop_prob == 0 or not self.training:
            return total + self._run(branch, x)
        # Drawn on the CPU whatever the device: how many samples are kept is then known without waiting for a GPU.
        kept = (rand_rows(len(x), self.num_images or len(x)) >= drop_prob).nonzero().squeeze(1)
        scale = 1 / (1 - drop_prob)
        if len(kept) == 0:  # some kernels refuse an empty batch: one sample, times 0
            kept, scale = torch.zeros(1, dtype=torch.int64), 0.0
        kept = kept.to(x.device, non_blocking=True)
        return total.index_add(0, kept, self._run(branch, x[kept]).to(x.dtype), alpha=scale)

    def _run(self, branch: Branch, x: Float[Tensor, "b *T D"]) -> Float[Tensor, "b *T D"]:
        function, module, _, attn_kwargs = branch
        if self.compile_backend is None:
            recomputes = self.selective_checkpointing and torch.is_grad_enabled() and not is_sharded(self)
            with recompute_outputs(self.recomputed_modules()) if recomputes else nullcontext():
                return function(module, x, **attn_kwargs)
        # One graph per crop size: tokens are counted when it is compiled, samples when it runs.
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch._dynamo.mark_static(x, tuple(range(1, x.ndim)))
        return _compiled(function, self.compile_backend)(module, x, **attn_kwargs)


# The branches are functions of their own, which all blocks of a network share and so compile once. They are not checked
# by the tests' type checker, which torch.compile cannot read.


@no_type_check
def _attention(block, x, **attn_kwargs):
    return block.ls1(block.attn(block.norm1(x), **attn_kwargs))


@no_type_check
def _mlp(block, x):
    return block.ls2(block.mlp(block.norm2(x)))


@no_type_check
def _post_norm_attention(block, x, **attn_kwargs):
    return block.norm1(block.attn(x, **attn_kwargs))


@no_type_check
def _post_norm_mlp(block, x):
    return block.norm2(block.mlp(x))


@no_type_check
def _parallel_attention(part, x, **attn_kwargs):
    return part.ls(part.attn(part.norm(x), **attn_kwargs))


@no_type_check
def _parallel_mlp(part, x):
    return part.ls(part.mlp(part.norm(x)))


@no_type_check
def _eva_attention(block, x, **attn_kwargs):
    x = block.attn(block.norm1(x), **attn_kwargs)
    return x if block.gamma_1 is None else block.gamma_1 * x


@no_type_check
def _eva_mlp(block, x):
    x = block.mlp(block.norm2(x))
    return x if block.gamma_2 is None else block.gamma_2 * x


@no_type_check
def _window_attention(block, x):
    return block._attn(block.norm1(x))


@no_type_check
def _window_mlp(block, x):
    return block.mlp(block.norm2(x))


class SubsetViTBlock(SubsetDropPathBlock, Block):
    branches = (_attention, _mlp)


class SubsetResPostBlock(SubsetDropPathBlock, ResPostBlock):
    branches = (_post_norm_attention, _post_norm_mlp)


class SubsetEvaBlock(SubsetDropPathBlock, EvaBlock):
    branches = (_eva_attention, _eva_mlp)


class SubsetEvaBlockPostNorm(SubsetDropPathBlock, EvaBlockPostNorm):
    branches = (_post_norm_attention, _post_norm_mlp)


class SubsetSwinBlock(SubsetDropPathBlock, SwinTransformerBlock):
    branches = (_window_attention, _window_mlp)


class SubsetParallelBlock(SubsetDropPathBlock, ParallelThingsBlock):
    """Several attentions side by side, then several MLPs, each with a stochastic depth of its own."""

    def residuals(self, **attn_kwargs: Any) -> list[list[Branch]]:
        block: Any = self
        return [
            [Branch(_parallel_attention, part, part.drop_path, attn_kwargs) for part in block.attns],
            [Branch(_parallel_mlp, part, part.drop_path) for part in block.ffns],
        ]

    def recomputed_modules(self) -> list[nn.Module]:
        block: Any = self
        return [*(part.norm for part in (*block.attns, *block.ffns)), *(part.mlp.act for part in block.ffns)]


SUBSET_BLOCKS: dict[type[nn.Module], type[SubsetDropPathBlock]] = {
    Block: SubsetViTBlock,
    ResPostBlock: SubsetResPostBlock,
    ParallelThingsBlock: SubsetParallelBlock,
    EvaBlock: SubsetEvaBlock,
    EvaBlockPostNorm: SubsetEvaBlockPostNorm,
    SwinTransformerBlock: SubsetSwinBlock,
}


def use_subset_drop_path(blocks: Iterable[nn.Module]) -> None:
    """Let timm's blocks skip what stochastic depth drops, in place; others compute it and multiply by 0, as before."""
    for block in blocks:
        block.__class__ = SUBSET_BLOCKS.get(type(block), type(block))


def set_num_images(module: nn.Module, num_images: int) -> None:
    """Say how many images a rank's samples are crops of, so that all ranks together drop what one process would."""
    for block in module.modules():
        if isinstance(block, SubsetDropPathBlock):
            block.num_images = num_images


def set_selective_checkpointing(blocks: Sequence[nn.Module], enabled: bool) -> None:
    """Let backward recompute outputs of norms and activation functions of these blocks. Warns of those that cannot."""
    for block in _subset_blocks(blocks, "activation checkpointing 'selective'") if enabled else blocks:
        if isinstance(block, SubsetDropPathBlock):
            block.selective_checkpointing = enabled


def compile_blocks(blocks: Sequence[nn.Module], backend: str | Callable | None = "inductor") -> None:
    """Compile the branches of these blocks when they next run; None: uncompiled. Warns of those that cannot be."""
    if backend is not None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for block in blocks if backend is None else _subset_blocks(blocks, "compile"):
        if isinstance(block, SubsetDropPathBlock):
            block.compile_backend = backend


def _subset_blocks(blocks: Sequence[nn.Module], setting: str) -> list[nn.Module]:
    use_subset_drop_path(blocks)
    others = sorted({type(block).__name__ for block in blocks if not isinstance(block, SubsetDropPathBlock)})
    if others:
        warnings.warn(f"{setting} has no effect on blocks of type {', '.join(others)}", stacklevel=4)
    if any(is_sharded(block) for block in blocks) and "selective" in setting:
        warnings.warn(f"{setting} has no effect on blocks with sharded parameters; use 'full' or 'none'", stacklevel=4)
    return list(blocks)


def is_sharded(block: nn.Module) -> bool:
    """True if FSDP2 shards its parameters: it then replaces them between forward and backward."""
    # By name: its import takes longer than all of this package.
    return any(base.__name__ == "FSDPModule" for base in type(block).__mro__)


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Set stochastic depth that rises evenly from 0 at the first block to `rate` at the last."""
    for i, block in enumerate(blocks):
        drop_prob = rate * i / max(len(blocks) - 1, 1)
        for parent in list(block.modules()):
            for name in [name for name, _ in parent.named_children() if name.startswith("drop_path")]:
                path = DropPath(drop_prob) if drop_prob > 0 else nn.Identity()
                setattr(parent, name, path.train(block.training))


@functools.cache
def _compiled(function: Callable[..., Tensor], backend: str | Callable) -> Callable[..., Tensor]:
    return torch.compile(function, backend=backend)
