"""The contract between an objective, one weighted part of the loss, and the rest of the training step."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config.masks import MaskConfig
from selfpatch.objectives.encoder import EncodedViews, Encoder


class Needs(NamedTuple):
    """Inputs of an objective beside the global crops of student and teacher: nothing is encoded that none needs.

    Args:
        masks: how the student's global crops are masked; None: they are not.
        masks_from_step: the first step in which they are.
        aggregator: patches are aggregated, so the encoder must have an aggregator that some objective trains.
        image_token: gradients flow through the image token.
        recolored: the teacher sees the global crops with colors drawn anew; it then does for all objectives.
        boxes: where crops lie in their image.
        teacher_layer: a stage of the backbone whose tokens are kept of the teacher, beside its output.
    """

    student_local: bool = False
    teacher_local: bool = False
    masks: MaskConfig | None = None
    masks_from_step: int = 0
    aggregator: bool = False
    image_token: bool = False
    recolored: bool = False
    boxes: bool = False
    teacher_layer: int | None = None


class Objective(nn.Module):
    """One part of the loss.

    `forward` returns the unweighted loss and its signals, and leaves the module's state alone. Changes of state
    (centers, queues) are remembered by `forward` and made by `commit` after an accepted step, once for all parts of an
    accumulated batch, or dropped by `discard`. So a target never sees its own step, and a skipped step leaves nothing.
    """

    needs: Needs = Needs()
    weight: float

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        raise NotImplementedError

    def weight_at(self, step: int) -> float:
        """The weight of this objective in the loss of a step."""
        return self.weight

    def check_grid(self, rows: int, columns: int) -> None:
        """Raises UserError if crops of rows x columns patches, of a kind that it needs, are too small for it."""

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(student's module, teacher's module); the second is an exponential moving average of the first."""
        return []

    def frozen_parameters(self, encoder: Encoder, step: int) -> Iterable[nn.Parameter]:
        """Parameters, of the objective or of the student's encoder, that take no part in this step."""
        return []

    def attach_teacher(self, teacher: Encoder) -> None:
        """Called once, when student and teacher are built: for objectives that copy the teacher's encoder later."""

    def commit(self) -> None:
        """Apply the state changes of an accepted step. Teachers follow afterwards: they are as `forward` saw them."""

    def discard(self) -> None:
        """Forget the state changes of a skipped step."""
