"""NeCo: of two crops of an image, student and teacher order the same reference patches by similarity."""

import copy
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.distributed import gather_rows, own_rows
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.objectives.objective import Needs, Objective
from selfpatch.objectives.projection_heads import projector
from selfpatch.objectives.same_place import in_crop, overlap, sample_region
from selfpatch.objectives.soft_sorting import SoftSorting

# The least that a logarithm is taken of: a product of many unlikely swaps may be 0 in float32.
TINY = torch.finfo(torch.float32).tiny
# Of the smaller crop's area. All crops that the authors' augmentation keeps share more: 1 % of the image, of which a
# local crop is a quarter at most, and 2 % if both are global.
MIN_OVERLAP = 0.02


class Crop(NamedTuple):
    """One crop of each image: unit vectors of its patches, and where it lies."""

    vectors: Float[Tensor, "B N Z"]
    grid_size: tuple[int, int]
    boxes: Float[Tensor, "B 4"]


class NeCo(Objective):
    """Patch neighbor consistency. For a global crop of the teacher and another crop of the student of the same image:

    1. their overlap, on a grid of `overlap_size` rows and columns in both, by RoI align of projected patches;
    2. as many reference patches, drawn for each image from these of the teacher in the whole batch;
    3. the cosine similarity of every patch to the references, of the student and of the teacher;
    4. both sorted by a differentiable network, which gives a permutation matrix each;
    5. cross-entropy between the two matrices: at which place of the order each reference is.

    The mean is taken over pairs of crops, images and patches. Images whose two crops share less than MIN_OVERLAP count
    as 0. References come from the images of all ranks and of one part of an accumulated batch.

    Source: NeCo (ICLR 2025), sec. 3; vpariza/NeCo@3932160 src/neco.py, without its queue and masks. Differs: flipped
    crops are turned back, where its augmentation flips none; it draws crops anew until all overlap; its teacher's
    projector does not start as the student's. The paper takes references of the student.
    """

    def __init__(self, dim: int, config: NeCoConfig, *, steps_per_epoch: int):
        super().__init__()
        self.config = config
        self.weight = config.weight
        self.needs = Needs(student_local=config.crops == "all", boxes=True)
        self.sort = SoftSorting(config.sorting_network, config.overlap_size**2)
        self.projector = projector(dim, config.hidden_dim, config.output_dim)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        with torch.no_grad():
            targets = _project(teacher.global_crops, teacher.global_boxes, teacher, self.teacher_projector)
        predicted = _project(student.global_crops, student.global_boxes, student, self.projector)
        if self.config.crops == "all" and student.local_crops is not None:
            predicted += _project(student.local_crops, student.local_boxes, student, self.projector)
        pairs = [
            self._compare(ours, theirs)
            for (g, theirs), (v, ours) in itertools.product(enumerate(targets), enumerate(predicted))
            if g != v
        ]
        cross_entropy, entropy, overlaps = (torch.stack(values) for values in zip(*pairs, strict=True))  # [pairs, B]
        loss = (overlaps * cross_entropy).mean()
        kl = (overlaps * (cross_entropy.detach() - entropy)).sum() / overlaps.sum().clamp(min=1)
        return loss, {"kl": kl, "overlap_fraction": overlaps.float().mean()}

    def _compare(self, ours: Crop, theirs: Crop) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """Per image: cross-entropy, the teacher's own entropy, and whether the two crops overlap."""
        # 1. The overlap in both crops; the whole crops, where there is none.
        size = (self.config.overlap_size, self.config.overlap_size)
        shared = overlap(ours.boxes, theirs.boxes)
        regions = [in_crop(shared, crop.boxes) for crop in (ours, theirs)]
        overlaps = (shared[:, 2:] > shared[:, :2]).all(dim=-1)
        overlaps = overlaps & (area(regions[0]).maximum(area(regions[1])) >= MIN_OVERLAP)
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=shared.device)
        our_region, their_region = (torch.where(overlaps[:, None], region, whole) for region in regions)

        # 2. References, and the teacher's order of them.
        with torch.no_grad():
            target = sample_region(theirs.vectors, theirs.grid_size, their_region, size)
            patches = gather_rows(target).flatten(0, 1)
            drawn = patches[torch.randperm(len(patches), device=patches.device)]  # the same on every rank
            references = own_rows(drawn, target.shape[0] * target.shape[1]).view_as(target)
            target_order = self.sort(similarities(target, references), self.config.teacher_steepness)

        # 3. The student's order. Of all layers of the sorting nothing is kept: they are computed again in backward.
        predicted = sample_region(ours.vectors, ours.grid_size, our_region, size)
        cross_entropy = checkpoint(
            self._cross_entropy,
            similarities(predicted, references),
            target_order,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        assert isinstance(cross_entropy, Tensor)
        num_images = len(target)
        entropy = torch.special.entr(target_order).sum(dim=0)
        return per_image(cross_entropy, num_images), per_image(entropy, num_images), overlaps

    def _cross_entropy(
        self, similarity: Float[Tensor, "M rows"], target_order: Float[Tensor, "M M rows"]
    ) -> Float[Tensor, "M rows"]:
        """Of every reference of every patch, over its places in the order."""
        order = self.sort(similarity, self.config.student_steepness)
        return -(target_order * order.clamp(min=TINY).log()).sum(dim=0)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.projector, self.teacher_projector)]


def _project(
    crops: Encoded, boxes: Float[Tensor, "V B 4"] | None, views: EncodedViews, network: nn.Module
) -> list[Crop]:
    """The crops of one resolution, one after the other."""
    assert boxes is not None, "an objective that needs boxes is given them"
    vectors = F.normalize(network(views.norm(crops.tokens.patch_tokens)).float(), dim=-1)
    by_crop = vectors.unflatten(0, boxes.shape[:2])
    return [Crop(crop, crops.tokens.grid_size, box) for crop, box in zip(by_crop, boxes, strict=True)]


def area(regions: Float[Tensor, "B 4"]) -> Float[Tensor, " B"]:
    """As a fraction of the crop that they are regions of."""
    return (regions[:, 2:] - regions[:, :2]).prod(dim=-1).abs()


def similarities(vectors: Float[Tensor, "B M Z"], references: Float[Tensor, "B M Z"]) -> Float[Tensor, "M rows"]:
    """Cosines of every reference (first axis) with every patch of the same image (rows, image-major), in float32."""
    with torch.autocast(vectors.device.type, enabled=False):
        cosine = F.normalize(vectors, dim=-1) @ F.normalize(references, dim=-1).transpose(1, 2)  # [B, patch, reference]
    return cosine.flatten(0, 1).T


def per_image(rows: Float[Tensor, "M rows"], num_images: int) -> Float[Tensor, " B"]:
    """The mean over references and patches."""
    return rows.mean(dim=0).unflatten(0, (num_images, -1)).mean(dim=1)
