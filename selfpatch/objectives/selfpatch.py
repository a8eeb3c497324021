"""SelfPatch, the whole idea: each patch of the student predicts the aggregate of its most similar neighbours."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import SelfPatchConfig
from selfpatch.errors import UserError
from selfpatch.objectives.objective import EncodedViews, Objective, without_gradient
from selfpatch.objectives.projection_heads import ProjectionHead
from selfpatch.objectives.self_distillation import SelfDistillation, chunked_cross_entropy, signals


class SelfPatch(Objective):
    """Patch-level term. For every patch of a view, on the teacher's side:

    1. its neighbourhood, a square window around it, itself left out;
    2. the cosine similarity to each neighbour;
    3. the `num_positives` most similar ones are its positives;
    4. the aggregator summarises them;
    5. projection head, centre and sharpening make that summary the target.

    The student's own token of the same patch of the same view, through the aggregator's norm and a projection head,
    predicts it by cross-entropy: mean over patches and images, then over crops. No gradient reaches the teacher.

    Source: SelfPatch (CVPR 2022), sec. 3.2; alinlab/SelfPatch@81aef14. Differs: any grid; `borders` and `crops` are
    settings (its code has "wrap" and "all").
    """

    def __init__(self, dim: int, config: SelfPatchConfig, *, steps_per_epoch: int):
        super().__init__()
        self.config = config
        self.weight = config.weight
        self.teacher_crops = self.student_crops = config.crops
        self.head = ProjectionHead(dim, config.head)
        self.teacher_head = without_gradient(copy.deepcopy(self.head))
        self.distillation = SelfDistillation(
            self.head.num_prototypes, config.distillation, steps_per_epoch=steps_per_epoch
        )
        self._frozen_steps = config.head.freeze_prototypes_epochs * steps_per_epoch

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        aggregator, teacher_aggregator = student.encoder.aggregator, teacher.encoder.aggregator
        assert aggregator is not None and teacher_aggregator is not None
        num_sizes = 1 if self.config.crops == "global" else len(student.sizes)
        num_crops = sum(len(tokens.patch_tokens) for tokens in student.sizes[:num_sizes])
        loss = torch.zeros((), device=student.global_crops.patch_tokens.device)
        teacher_prototypes, prototypes = self.teacher_head.prototypes.weight, self.head.prototypes.weight
        bottlenecks, global_targets, similarity = [], None, {}
        for student_tokens, teacher_tokens in zip(student.sizes[:num_sizes], teacher.sizes, strict=False):
            # 1. Targets: what the teacher makes of each patch's positives.
            with torch.no_grad():
                positives, positive_similarity = find_positives(teacher_tokens, self.config)
                aggregates = teacher_aggregator(teacher_tokens.patch_tokens, positives)
                bottleneck = self.teacher_head.bottleneck(aggregates).flatten(0, 1)  # [V*B*N, Z]
                targets_of = self.distillation.targets_by_rows(bottleneck, teacher_prototypes, step)

            # 2. Predictions: the student's plain tokens, through the norm that aggregates go through as well.
            predicted = self.head.bottleneck(aggregator.norm(student_tokens.patch_tokens)).flatten(0, 1)

            # 3. Cross-entropy: mean over patches, then every crop of every image counts the same.
            num_patches = student_tokens.patch_tokens.shape[1]
            loss = loss + chunked_cross_entropy(
                predicted, prototypes, targets_of, temperature=self.distillation.student_temperature
            ) / (num_patches * num_crops)
            bottlenecks.append(bottleneck)
            if global_targets is None:
                global_targets = targets_of(slice(None, None, max(1, len(bottleneck) // 1024)))
                similarity = similarity_signals(teacher_tokens.patch_tokens, positive_similarity)

        # 4. For the centre: the mean teacher logit over all patches of all crops, by linearity the logit of the mean.
        mean_bottleneck = torch.cat(bottlenecks).mean(dim=0)
        self.distillation.observe(self.teacher_head.prototypes(mean_bottleneck))
        return loss, signals(global_targets, loss) | similarity

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.head, self.teacher_head)]

    def frozen_parameters(self, step: int) -> Iterable[nn.Parameter]:
        return self.head.prototypes.parameters() if step < self._frozen_steps else []

    def commit(self) -> None:
        self.distillation.commit()

    def discard(self) -> None:
        self.distillation.discard()


def find_positives(tokens: Tokens, config: SelfPatchConfig) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The most similar neighbours of every patch, best first, and their cosine similarity."""
    neighbors, exists = neighborhood(tokens.grid_size, config.window_size, config.borders)
    neighbors, exists = neighbors.to(tokens.patch_tokens.device), exists.to(tokens.patch_tokens.device)
    return match_positives(tokens.patch_tokens, neighbors, exists, config.num_positives)


def neighborhood(
    grid_size: tuple[int, int], window_size: int, borders: str
) -> tuple[Int[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Indices of the patches in the window around every patch, itself left out, and whether they exist.

    Beyond the border, "wrap" continues at the opposite side, as the authors' code does; "clip" has nothing there.

    Raises:
        UserError: the grid is smaller than the window: a wrapped neighbour would be the patch itself, or come twice.
    """
    rows, columns = grid_size
    if min(rows, columns) < window_size:
        raise UserError(
            f"a crop of {rows} x {columns} patches is smaller than the window of {window_size} x {window_size} patches "
            "in which positives are sought; use larger crops, smaller patches or a smaller "
            "objectives.selfpatch.window-size"
        )
    reach = torch.arange(window_size) - window_size // 2
    offsets = torch.cartesian_prod(reach, reach)
    itself = len(offsets) // 2
    row_offset, column_offset = torch.cat([offsets[:itself], offsets[itself + 1 :]]).unbind(dim=-1)
    patch = torch.arange(rows * columns)[:, None]
    row, column = patch // columns + row_offset, patch % columns + column_offset  # [N, M]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    indices = (row % rows) * columns + column % columns
    return indices, torch.ones_like(inside) if borders == "wrap" else inside


def match_positives(
    patch_tokens: Float[Tensor, "B N D"],
    neighbors: Int[Tensor, "N M"],
    exists: Bool[Tensor, "N M"],
    num_positives: int,
) -> tuple[Int[Tensor, "B N P"], Float[Tensor, "B N P"]]:
    """The `num_positives` neighbours of highest cosine similarity, best first, and that similarity.

    Tokens come as the backbone gives them, before any norm of the aggregator.
    """
    unit = F.normalize(patch_tokens.float(), dim=-1)
    # All pairs by one product, then M numbers a patch: cheaper than gathering M vectors a patch. In float32: neighbours
    # are so alike that bf16 cannot tell them apart.
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ unit.transpose(1, 2)  # [B, N, N]
    similarity = similarity.gather(2, neighbors.expand(len(similarity), -1, -1))  # [B, N, M]
    best, order = similarity.masked_fill(~exists, -torch.inf).topk(num_positives, dim=-1)
    return neighbors.expand_as(similarity).gather(2, order), best


@torch.no_grad()
def similarity_signals(
    patch_tokens: Float[Tensor, "B N D"], positive_similarity: Float[Tensor, "B N P"]
) -> dict[str, Float[Tensor, ""]]:
    """Cosine similarity of positives, and of patches half an image apart: equal means that patches have collapsed."""
    unit = F.normalize(patch_tokens.float(), dim=-1)
    apart = (unit * unit.roll(unit.shape[1] // 2, dims=1)).sum(dim=-1)
    return {"positive_similarity": positive_similarity.mean(), "random_similarity": apart.mean()}
