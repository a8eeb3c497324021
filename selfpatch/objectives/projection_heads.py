"""From tokens to logits over prototypes."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config import HeadConfig
from selfpatch.distributed import global_sum, world_size


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have a learned or fixed norm.

    Two parameters, a length and a direction a prototype, as weight normalisation has them: the teacher averages each
    of them on its own.
    """

    def __init__(self, dim: int, num_prototypes: int, *, fix_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not fix_norm)
        self.weight_v = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach())

    @property
    def weight(self) -> Float[Tensor, "K D"]:
        return self.weight_g * F.normalize(self.weight_v, dim=-1)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        return F.linear(x, self.weight)


class ProjectionHead(nn.Module):
    """DINO's head: three linear layers with GELU (and batch norm, if wanted), L2 norm, prototypes.

    Source: DINO, appendix C; facebookresearch/dino vision_transformer.py DINOHead.
    """

    def __init__(self, dim: int, config: HeadConfig):
        super().__init__()
        assert config.num_prototypes is not None  # derived by now
        self.num_prototypes = config.num_prototypes
        self.mlp = projector(dim, config.hidden_dim, config.bottleneck_dim, batch_norm=config.batch_norm)
        self.prototypes = Prototypes(config.bottleneck_dim, self.num_prototypes, fix_norm=config.fix_prototype_norm)

    def bottleneck(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows Z"]:
        """Unit vectors; logits are linear in them, so the mean logit is the logit of their mean."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        return self.prototypes(self.bottleneck(x))


def projector(dim: int, hidden_dim: int, output_dim: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Three linear layers, with GELU (and batch norm, if wanted) between them."""

    def hidden() -> list[nn.Module]:
        return [BatchNorm(hidden_dim), nn.GELU()] if batch_norm else [nn.GELU()]

    layers = nn.Sequential(
        nn.Linear(dim, hidden_dim),
        *hidden(),
        nn.Linear(hidden_dim, hidden_dim),
        *hidden(),
        nn.Linear(hidden_dim, output_dim),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers


class BatchNorm(nn.Module):
    """Normalises every channel over all other axes, always with the statistics of the batch at hand, over all ranks."""

    def __init__(self, dim: int, *, affine: bool = True):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=affine, track_running_stats=False)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        if world_size() == 1:
            return self.norm(x.flatten(0, -2)).view_as(x)
        normalized = _NormalizeOverRanks.apply(x.flatten(0, -2).float(), self.norm.eps)
        if self.norm.affine:
            normalized = normalized * self.norm.weight + self.norm.bias
        return normalized.to(x.dtype).view_as(x)


class _NormalizeOverRanks(torch.autograd.Function):
    """Batch norm with the rows of all ranks; they may have differently many, or none.

    torch's SyncBatchNorm does the same on GPUs only.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "rows D"], eps: float) -> Float[Tensor, "rows D"]:
        sums = global_sum(torch.cat([x.sum(dim=0), x.new_tensor([len(x)])]))
        num_rows = sums[-1]
        centered = x - sums[:-1] / num_rows
        scale = (global_sum(centered.square().sum(dim=0)) / num_rows + eps).rsqrt()
        normalized = centered * scale
        ctx.save_for_backward(normalized, scale, num_rows)
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """With y normalized and g its gradient: dx = scale (g - mean(g) - y mean(g y))."""
        normalized, scale, num_rows = ctx.saved_tensors
        (gradient,) = gradients
        sums = global_sum(torch.stack([gradient.sum(dim=0), (gradient * normalized).sum(dim=0)]))
        mean, product_mean = (sums / num_rows).unbind()
        return scale * (gradient - mean - normalized * product_mean), None
