"""Cross-entropy over prototypes without ever holding all logits: a few rows at a time, gradients in the same pass."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Numbers in a chunk of logits: 64 MiB in float32.
CHUNK_SIZE = 2**24


def chunked_cross_entropy(
    bottleneck: Float[Tensor, "rows Z"],
    prototypes: Float[Tensor, "K Z"],
    targets_of: Callable[[slice], Float[Tensor, "_ K"]],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over rows of the cross-entropy between targets and softmax(bottleneck @ prototypes.T / temperature).

    A row of targets may be a sum of several targets.

    Args:
        targets_of: the targets of some rows; called once for each chunk, no gradient reaches it.
    """
    return _ChunkedCrossEntropy.apply(bottleneck, prototypes, targets_of, temperature)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """With m = sum(t), a row's loss is m lse(s) - <t, s> and its gradient in s is m softmax(s) - t, for logits s.

    Both need the logits once, so gradients are made on the way forward and only scaled on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, bottleneck: Tensor, prototypes: Tensor, targets_of: Callable[[slice], Tensor], temperature: float
    ) -> Tensor:
        loss = torch.zeros((), device=bottleneck.device)
        to_bottleneck, to_prototypes = torch.empty_like(bottleneck), torch.zeros_like(prototypes)
        rows_at_once = max(1, CHUNK_SIZE // len(prototypes))
        for start in range(0, len(bottleneck), rows_at_once):
            rows = slice(start, start + rows_at_once)
            targets = targets_of(rows)
            logits = (bottleneck[rows] @ prototypes.T).float() / temperature
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            mass = targets.sum(dim=-1, keepdim=True)
            loss += (mass * log_sum).sum() - (targets * logits).sum()
            to_logits = (logits - log_sum).exp_().mul_(mass).sub_(targets).div_(temperature)
            to_bottleneck[rows] = to_logits @ prototypes
            if ctx.needs_input_grad[1]:
                to_prototypes += to_logits.T @ bottleneck[rows]
        ctx.save_for_backward(to_bottleneck, to_prototypes if ctx.needs_input_grad[1] else None)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_bottleneck, to_prototypes = ctx.saved_tensors
        (scale,) = gradients
        return scale * to_bottleneck, None if to_prototypes is None else scale * to_prototypes, None, None
