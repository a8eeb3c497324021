"""The patch-level objective: patches of the student predict the teacher's. SelfPatch and iBOT are settings of it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.distributed import global_sum
from selfpatch.objectives.distillation_branch import BranchObjective, DistillationBranch
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.objectives.objective import Needs
from selfpatch.objectives.positives import average_positives, find_positives, require_neighbors, similarity_signals
from selfpatch.objectives.same_place import in_crop, sample_region, shown_patches
from selfpatch.objectives.self_distillation import TargetsOf

# Batch norm of a head needs two rows.
MIN_ROWS = 2


class PatchObjective(BranchObjective):
    """Patch-level objective. For every patch of a view, on the teacher's side:

    1. its neighborhood, a square window around it, without itself;
    2. the cosine similarity to each neighbor;
    3. the `num_positives` most similar ones are its positives;
    4. the aggregator, or a mean, summarizes them;
    5. projection head, center and sharpening make that summary the target.

    With target "self" the teacher's own token of the patch stands for 1 to 4. The teacher sees the same crop, or by
    `view` the same with other colors, or the next global crop of the image, whose summaries are sampled at the place of
    every patch; patches that it does not show whole do not count.

    The student's token of the same patch of the same view, masked or visible, through the norm of plain patches and a
    projection head, predicts it by cross-entropy. The loss of a crop is the mean over its patches, weighted by
    `masked_weight` and `visible_weight`, 0 if none counts; the loss is the mean over all crops. No gradient reaches the
    teacher. The center is that of all patches of the teacher, whichever count.

    Args:
        shared: the branch whose heads are used, if the settings have no head; centers and temperatures stay apart.
    """

    def __init__(
        self, dim: int, config: PatchConfig, *, steps_per_epoch: int, shared: DistillationBranch | None = None
    ):
        super().__init__()
        self.config = config
        self.weight = config.weight
        assert config.start_epoch is not None and config.ramp_epochs is not None  # derived before
        self._start_step = round(config.start_epoch * steps_per_epoch)
        self._ramp_steps = round(config.ramp_epochs * steps_per_epoch)
        sees_local = config.crops == "all"
        self.needs = Needs(
            student_local=sees_local,
            teacher_local=sees_local,
            masks=config.masks,
            masks_from_step=self._start_step,
            aggregator=config.needs_aggregator,
            recolored=config.view == "recolored",
            boxes=config.view == "other",
            teacher_layer=config.layer,
        )
        self.branch = DistillationBranch(
            dim, config.head, config.distillation, steps_per_epoch=steps_per_epoch, shared=shared
        )

    def weight_at(self, step: int) -> float:
        if step < self._start_step:
            return 0.0
        steps_done = step + 1 - self._start_step
        return self.weight * min(steps_done / self._ramp_steps, 1.0) if self._ramp_steps else self.weight

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        num_resolutions = 1 if self.config.crops == "global" else len(student.by_resolution)
        results = [self._one_resolution(student, teacher, resolution, step) for resolution in range(num_resolutions)]
        # Every crop of every image counts the same, whatever its number of patches.
        num_crops = sum(result.num_crops for result in results)
        loss = torch.stack([result.cross_entropy / (result.crop_weight * num_crops) for result in results]).sum()
        # For the center: the mean over all patches of all crops.
        self.branch.accumulate_center(torch.cat([result.projected for result in results]))
        return loss, results[0].signals

    def _one_resolution(
        self, student: EncodedViews, teacher: EncodedViews, resolution: int, step: int
    ) -> "ResolutionResult":
        student_tokens = student.by_resolution[resolution].tokens
        num_crops, num_patches = student_tokens.patch_tokens.shape[:2]
        masks = student.masks if resolution == 0 else None  # only global crops are masked

        # 1. Summaries: the teacher's patches, or each one's positives in one token.
        with torch.no_grad():
            summaries, signals = self._summaries(teacher, teacher.by_resolution[resolution])
            shown = None
            if self.config.view == "other":
                assert teacher.global_boxes is not None, "an objective that needs boxes is given them"
                summaries, shown = from_next_crop(summaries, student_tokens.grid_size, teacher.global_boxes)
                signals["shown_fraction"] = shown.float().mean()

        # 2. Weights of the patches; those that count, where many do not. Targets.
        weights = self._weights(masks, shown, student_tokens.patch_tokens)
        rows = None if masks is None or weights is None else nonzero_rows(weights)
        with torch.no_grad():
            # The center is that of all patches; without one the others need not be projected.
            needed = None if self.branch.distillation.has_center else rows
            projected = self.branch.project_teacher(take(summaries.flatten(0, 1), needed))
            targets_of = self.branch.targets_of(take(projected, rows if needed is None else None), self._age(step))

        # 3. Predictions: the student's plain tokens, through the norm that summaries go through as well.
        predicted = self.branch.predict(take(student.norm(student_tokens.patch_tokens).flatten(0, 1), rows))

        # 4. Cross-entropy; signals on about a thousand rows.
        some_rows = slice(None, None, max(1, len(predicted) // 1024))
        signals = self.branch.signals(predicted[some_rows], targets_of(some_rows)) | signals
        if masks is not None:
            signals["masked_fraction"] = masks.float().mean()
        if weights is not None:
            targets_of = weighted(targets_of, take(weights.flatten(), rows))
        return ResolutionResult(
            cross_entropy=self.branch.cross_entropy(predicted, targets_of),
            num_crops=num_crops,
            crop_weight=num_patches if weights is None else 1,
            projected=projected,
            signals=signals,
        )

    def _age(self, step: int) -> int:
        """Steps since this objective began, which the warm-up of the teacher's temperature counts, as in iBOT."""
        return max(step - self._start_step, 0)

    def _weights(
        self,
        masks: Bool[Tensor, "VB N"] | None,
        shown: Bool[Tensor, "VB N"] | None,
        patch_tokens: Float[Tensor, "VB N D"],
    ) -> Float[Tensor, "VB N"] | None:
        """Weight of every patch, those of a crop together 1, or 0 if none counts. None: all of them count the same."""
        masked, visible = self.config.masked_weight, self.config.visible_weight
        if shown is None and (masked == visible or (masks is None and visible)):
            return None
        weights = torch.full(patch_tokens.shape[:2], float(visible), device=patch_tokens.device)
        if masks is not None:
            weights = torch.where(masks, float(masked), weights)
        if shown is not None:
            weights = weights * shown
        sums = weights.sum(dim=-1, keepdim=True)
        return weights / torch.where(sums > 0, sums, 1.0)

    def _summaries(
        self, teacher: EncodedViews, crops: Encoded
    ) -> tuple[Float[Tensor, "VB N D"], dict[str, Float[Tensor, ""]]]:
        """Tokens for every patch to predict, before the head, and signals about them."""
        tokens = crops.tokens
        if self.config.target == "self":
            return teacher.norm(tokens.patch_tokens), similarity_signals(tokens.patch_tokens, None)
        searched = tokens
        if self.config.layer is not None:
            searched = tokens._replace(patch_tokens=crops.layers[self.config.layer])
        positives, similarity = find_positives(searched, self.config)
        if self.config.aggregation == "class_attention":
            summaries = teacher.aggregate(tokens.patch_tokens, positives)
        else:
            summaries = teacher.norm(
                average_positives(tokens.patch_tokens, positives, similarity, self.config.aggregation)
            )
        return summaries, similarity_signals(searched.patch_tokens, similarity)

    def check_grid(self, rows: int, columns: int) -> None:
        if self.config.target == "neighbors":
            require_neighbors((rows, columns), self.config)


class ResolutionResult(NamedTuple):
    """The loss of all crops of one resolution, and their signals."""

    cross_entropy: Float[Tensor, ""]  # weighted sum over crops, images and patches
    num_crops: int  # V*B
    crop_weight: int  # what the weights of a crop's patches add up to
    projected: Float[Tensor, "rows Z"]  # of the teacher, for the center
    signals: dict[str, Tensor]


def from_next_crop(
    summaries: Float[Tensor, "GB N D"], grid_size: tuple[int, int], boxes: Float[Tensor, "G B 4"]
) -> tuple[Float[Tensor, "GB N D"], Bool[Tensor, "GB N"]]:
    """Summaries of the next global crop (of two: the other) at the place of every patch, and where it shows all of it.

    Elsewhere the crop's own stay, so that every row is a summary.
    """
    following = summaries.unflatten(0, boxes.shape[:2]).roll(-1, dims=0).flatten(0, 1)
    regions = in_crop(boxes.flatten(0, 1), boxes.roll(-1, dims=0).flatten(0, 1))
    shown = shown_patches(regions, grid_size)
    return torch.where(shown[..., None], sample_region(following, grid_size, regions, grid_size), summaries), shown


def nonzero_rows(weights: Float[Tensor, "VB N"]) -> Int[Tensor, " rows"] | None:
    """Indices of the patches that count; None: take all, as all count, or too few for a head's batch norm.

    Counted over all ranks: one of them may have few rows, or none.
    """
    rows = weights.flatten().nonzero().squeeze(1)
    num_rows, num_patches = global_sum(torch.tensor([len(rows), weights.numel()], device=weights.device)).tolist()
    return rows if MIN_ROWS <= num_rows < num_patches else None


def take(x: Tensor, rows: Int[Tensor, " rows"] | None) -> Tensor:
    return x if rows is None else x[rows]


def weighted(targets_of: TargetsOf, weights: Float[Tensor, " rows"]) -> TargetsOf:
    """Targets times the weight of their row: cross-entropy is linear in them."""
    return lambda rows: targets_of(rows) * weights[rows, None]
