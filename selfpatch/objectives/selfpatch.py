"""SelfPatch: each patch of the student predicts the aggregate of its most similar neighbors."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import SelfPatchConfig
from selfpatch.errors import UserError
from selfpatch.objectives.distillation_branch import DistillationBranch
from selfpatch.objectives.encoder import EncodedViews, Encoder
from selfpatch.objectives.objective import Needs, Objective


class SelfPatch(Objective):
    """Patch-level objective. For every patch of a view, on the teacher's side:

    1. its neighborhood, a square window around it, without itself;
    2. the cosine similarity to each neighbor;
    3. the `num_positives` most similar ones are its positives;
    4. the aggregator summarizes them;
    5. projection head, center and sharpening make that summary the target.

    The student's own token of the same patch of the same view, through the aggregator's norm and a projection head,
    predicts it by cross-entropy: mean over patches and images, then over crops. No gradient reaches the teacher.

    Source: SelfPatch (CVPR 2022), sec. 3.2; alinlab/SelfPatch@81aef14. Differs: any grid; settings `padding_mode` and
    `crops` (its code has "circular" and "all").
    """

    def __init__(self, dim: int, config: SelfPatchConfig, *, steps_per_epoch: int):
        super().__init__()
        self.config = config
        self.weight = config.weight
        sees_local = config.crops == "all"
        self.needs = Needs(student_local=sees_local, teacher_local=sees_local, aggregator=True)
        self.branch = DistillationBranch(dim, config.head, config.distillation, steps_per_epoch=steps_per_epoch)

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        num_resolutions = 1 if self.config.crops == "global" else len(student.by_resolution)
        results = [self._one_resolution(student, teacher, resolution, step) for resolution in range(num_resolutions)]
        # Every crop of every image counts the same, whatever its number of patches.
        num_crops = sum(result.num_crops for result in results)
        loss = torch.stack([result.cross_entropy / (result.num_patches * num_crops) for result in results]).sum()
        # For the center: the mean over all patches of all crops.
        self.branch.accumulate_center(torch.cat([result.projected for result in results]))
        return loss, results[0].signals

    def _one_resolution(
        self, student: EncodedViews, teacher: EncodedViews, resolution: int, step: int
    ) -> "ResolutionResult":
        student_tokens = student.by_resolution[resolution].tokens
        teacher_tokens = teacher.by_resolution[resolution].tokens
        num_crops, num_patches = student_tokens.patch_tokens.shape[:2]

        # 1. Targets: the teacher's summary of each patch's positives.
        with torch.no_grad():
            positives, similarity = find_positives(teacher_tokens, self.config)
            aggregates = teacher.aggregate(teacher_tokens.patch_tokens, positives)
            projected = self.branch.project_teacher(aggregates).flatten(0, 1)  # [V*B*N, Z]
            targets_of = self.branch.targets_of(projected, step)

        # 2. Predictions: the student's plain tokens, through the norm that aggregates go through as well.
        predicted = self.branch.predict(student.norm(student_tokens.patch_tokens)).flatten(0, 1)

        # 3. Cross-entropy; signals on about a thousand rows.
        some_rows = slice(None, None, max(1, len(projected) // 1024))
        return ResolutionResult(
            cross_entropy=self.branch.cross_entropy(predicted, targets_of),
            num_crops=num_crops,
            num_patches=num_patches,
            projected=projected,
            signals=self.branch.signals(predicted[some_rows], targets_of(some_rows))
            | similarity_signals(teacher_tokens.patch_tokens, similarity),
        )

    def check_grid(self, rows: int, columns: int) -> None:
        neighborhood((rows, columns), self.config.window_size, self.config.padding_mode)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return self.branch.ema_pairs()

    def frozen_parameters(self, encoder: Encoder, step: int) -> Iterable[nn.Parameter]:
        return self.branch.frozen_parameters(step)

    def commit(self) -> None:
        self.branch.commit()

    def discard(self) -> None:
        self.branch.discard()


class ResolutionResult(NamedTuple):
    """The loss of all crops of one resolution, and their signals."""

    cross_entropy: Float[Tensor, ""]  # summed over crops, images and patches
    num_crops: int  # V*B
    num_patches: int  # per crop
    projected: Float[Tensor, "rows Z"]  # of the teacher, for the center
    signals: dict[str, Tensor]


def find_positives(tokens: Tokens, config: SelfPatchConfig) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The most similar neighbors of every patch, best first, and their cosine similarity."""
    neighbors, valid = neighborhood(tokens.grid_size, config.window_size, config.padding_mode)
    device = tokens.patch_tokens.device
    return match_positives(tokens.patch_tokens, neighbors.to(device), valid.to(device), config.num_positives)


def neighborhood(
    grid_size: tuple[int, int], window_size: int, padding_mode: str
) -> tuple[Int[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Indices of the patches in the window around every patch, without itself, and whether they are valid.

    Beyond the border, "circular" continues at the opposite side, as the authors' code does; "none" has nothing there.

    Raises:
        UserError: the grid is smaller than the window: a wrapped neighbor would be the patch itself, or come twice.
    """
    rows, columns = grid_size
    if min(rows, columns) < window_size:
        raise UserError(
            f"a crop of {rows} x {columns} patches is smaller than the window of {window_size} x {window_size} patches "
            "in which positives are sought; use larger crops, smaller patches or a smaller "
            "objectives.selfpatch.window-size"
        )
    along_axis = torch.arange(window_size) - window_size // 2
    offsets = torch.cartesian_prod(along_axis, along_axis)
    center = len(offsets) // 2
    row_offset, column_offset = torch.cat([offsets[:center], offsets[center + 1 :]]).unbind(dim=-1)
    patch = torch.arange(rows * columns)[:, None]
    row, column = patch // columns + row_offset, patch % columns + column_offset  # [N, M]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    indices = (row % rows) * columns + column % columns
    return indices, torch.ones_like(inside) if padding_mode == "circular" else inside


def match_positives(
    patch_tokens: Float[Tensor, "B N D"],
    neighbors: Int[Tensor, "N M"],
    valid: Bool[Tensor, "N M"],
    num_positives: int,
) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The `num_positives` neighbors of highest cosine similarity, best first, and that similarity.

    Tokens come as the backbone gives them, before any norm of the aggregator.
    """
    unit = F.normalize(patch_tokens.float(), dim=-1)
    # All pairs by one product, then M numbers a patch: cheaper than gathering M vectors a patch. In float32: neighbors
    # are so alike that bf16 cannot tell them apart.
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ unit.transpose(1, 2)  # [B, N, N]
    similarity = similarity.gather(2, neighbors.expand(len(similarity), -1, -1))  # [B, N, M]
    best, order = similarity.masked_fill(~valid, -torch.inf).topk(num_positives, dim=-1)
    return neighbors.expand_as(similarity).gather(2, order), best


@torch.no_grad()
def similarity_signals(
    patch_tokens: Float[Tensor, "B N D"], positive_similarity: Float[Tensor, "B N P"]
) -> dict[str, Float[Tensor, ""]]:
    """Cosine similarity of positives, and of patches half an image apart: equal means that patches have collapsed."""
    unit = F.normalize(patch_tokens.float(), dim=-1)
    apart = (unit * unit.roll(unit.shape[1] // 2, dims=1)).sum(dim=-1)
    return {"positive_similarity": positive_similarity.mean(), "random_similarity": apart.mean()}
