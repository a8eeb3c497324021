"""Self-distillation between logits over prototypes: center and sharpen the teacher, cross-entropy, signals."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config import SelfDistillationConfig
from selfpatch.distributed import global_logsumexp, global_mean, global_sum
from selfpatch.optim.schedules import epochwise_linear

# Numbers in a chunk of logits: 64 MiB in float32.
CHUNK_SIZE = 2**24
# The smallest load of a prototype that Sinkhorn evens out, rows first: as a part of an even share.
LEAST_LOAD = 1e-12

# Gives the targets of some rows; no gradient reaches it.
TargetsOf = Callable[[slice], Float[Tensor, "_ K"]]


class SelfDistillation(nn.Module):
    """Turns teacher logits into targets, and owns the center that keeps them from collapsing onto one prototype.

    With centering "mean", target = softmax((teacher logits - center) / teacher temperature). The center is a moving
    average of the mean teacher logit given to `accumulate_center`, over all ranks; it changes in `commit` only.
    With "sinkhorn" there is no center: the targets of each forward pass are balanced over the prototypes.

    Source: DINO, sec. 3.1; DINOv2, sec. 4.
    """

    center: Float[Tensor, " K"]

    def __init__(self, num_prototypes: int, config: SelfDistillationConfig, *, steps_per_epoch: int):
        super().__init__()
        self.student_temperature = config.student_temperature
        self.teacher_temperature = epochwise_linear(
            config.warmup_teacher_temperature, config.teacher_temperature, config.warmup_epochs, steps_per_epoch
        )
        self.has_center = config.centering == "mean"
        self.sinkhorn_first: Literal["rows", "prototypes"] = config.sinkhorn_first
        self.center_momentum = config.center_momentum
        self.register_buffer("center", torch.zeros(num_prototypes))
        self._accumulated: list[Float[Tensor, " K"]] = []

    def targets(self, teacher_logits: Float[Tensor, "rows K"], step: int) -> Float[Tensor, "rows K"]:
        temperature = self.teacher_temperature(step)
        if self.has_center:
            return ((teacher_logits.float() - self.center) / temperature).softmax(dim=-1)
        return sinkhorn(teacher_logits.float() / temperature, first=self.sinkhorn_first)

    def targets_of(self, projected: Float[Tensor, "rows Z"], prototypes: Float[Tensor, "K Z"], step: int) -> TargetsOf:
        """Targets of any rows, made when asked for; Sinkhorn has to see all rows at once."""
        if self.has_center:
            return lambda rows: self.targets(projected[rows] @ prototypes.T, step)
        targets = self.targets(projected @ prototypes.T, step)
        return lambda rows: targets[rows]

    def accumulate_center(self, mean_logits: Float[Tensor, " K"]) -> None:
        """Remember the mean teacher logit of a batch, or of one of its parts of equal size."""
        self._accumulated.append(mean_logits.detach().float())

    def commit(self) -> None:
        """Move the center; nothing if nothing was accumulated since the last commit."""
        if self._accumulated:
            mean_logits = global_mean(torch.stack(self._accumulated).mean(dim=0))
            self.center.mul_(self.center_momentum).add_(mean_logits, alpha=1 - self.center_momentum)
        self.discard()

    def discard(self) -> None:
        self._accumulated.clear()


def sinkhorn(
    scores: Float[Tensor, "rows K"], num_iterations: int = 3, *, first: Literal["rows", "prototypes"] = "prototypes"
) -> Float[Tensor, "rows K"]:
    """exp(scores), moved towards the nearest assignment in which every prototype gets equally many rows.

    Rows of all ranks count together; every row of the result sums to 1. In logarithms, so that sharp scores neither
    overflow nor leave a prototype with nothing. The end of many iterations is one, whatever is balanced first; that of
    three is not: beginning with the prototypes, the rows of the largest scores take most of each.

    Source: SwAV (NeurIPS 2020), algorithm 1; three iterations, the prototypes first, as in SwAV and DINOv2.
    """
    assignment, least_load = scores, scores.new_tensor(-math.inf)
    if first == "rows":
        # A load is then a number of rows; of a prototype that next to no row wants it counts as this many.
        assignment, num_rows = scores.log_softmax(dim=-1), global_sum(scores.new_tensor(len(scores)))
        least_load = (num_rows * LEAST_LOAD / scores.shape[-1]).log()
    for _ in range(num_iterations):
        load = global_logsumexp(assignment.logsumexp(dim=0)).clamp(min=least_load)
        assignment = assignment - load  # every prototype gets as much
        assignment = assignment.log_softmax(dim=-1)
    return assignment.exp()


@torch.no_grad()
def distillation_signals(
    targets: Float[Tensor, "rows K"], cross_entropy: Float[Tensor, ""]
) -> dict[str, Float[Tensor, ""]]:
    """Health of the targets of all ranks. Entropies as fractions of ln K.

    `mutual_information` (entropy of the mean target - mean entropy) falls to 0 in both kinds of collapse: every target
    uniform, or every target the same prototype. `kl` is the part of the cross-entropy that the student can still win.
    `prototypes_used` is a fraction of those that this many rows can use.

    Args:
        cross_entropy: the mean between these same targets and the student's predictions of them.
    """
    num_rows, num_prototypes = targets.shape
    used = torch.zeros(num_prototypes, device=targets.device).index_fill_(0, targets.argmax(dim=-1), 1.0)
    # Sums over the rows of all ranks, which may have differently many, in one message.
    numbers = torch.stack(
        [torch.special.entr(targets).sum(), num_rows * cross_entropy.detach(), targets.new_tensor(num_rows)]
    )
    sums = global_sum(torch.cat([targets.sum(dim=0), used, numbers.to(targets.dtype)]))
    target_sum, used, numbers = sums.split([num_prototypes, num_prototypes, len(numbers)])
    entropy_sum, cross_entropy_sum, global_rows = numbers.unbind()
    entropy, mean_entropy = entropy_sum / global_rows, torch.special.entr(target_sum / global_rows).sum()
    scale = math.log(num_prototypes)
    return {
        "teacher_entropy": entropy / scale,
        "mean_teacher_entropy": mean_entropy / scale,
        "mutual_information": (mean_entropy - entropy) / scale,
        "kl": cross_entropy_sum / global_rows - entropy,
        "prototypes_used": (used > 0).sum() / global_rows.clamp(max=num_prototypes),
    }


def chunked_cross_entropy(
    bottleneck: Float[Tensor, "rows Z"],
    prototypes: Float[Tensor, "K Z"],
    targets_of: TargetsOf,
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over rows of the cross-entropy between targets and softmax(bottleneck @ prototypes.T / temperature).

    A row of targets may be a sum of several targets; they are asked for once per chunk of rows.
    """
    return _ChunkedCrossEntropy.apply(bottleneck, prototypes, targets_of, temperature)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """With m = sum(t), a row's loss is m lse(s) - <t, s> and its gradient in s is m softmax(s) - t, for logits s.

    Both need the logits once, so gradients are made on the way forward and only scaled on the way back.
    """

    @staticmethod
    def forward(ctx: Any, bottleneck: Tensor, prototypes: Tensor, targets_of: TargetsOf, temperature: float) -> Tensor:
        loss = torch.zeros((), device=bottleneck.device)
        to_bottleneck, to_prototypes = torch.empty_like(bottleneck), torch.zeros_like(prototypes)
        rows_at_once = max(1, CHUNK_SIZE // len(prototypes))
        for start in range(0, len(bottleneck), rows_at_once):
            rows = slice(start, min(start + rows_at_once, len(bottleneck)))
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
