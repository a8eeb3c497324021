"""KoLeo: a regularizer that spreads the image tokens of a batch evenly over the sphere."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.distributed import gather_rows_with_gradient, own_rows, world_size
from selfpatch.objectives.encoder import EncodedViews
from selfpatch.objectives.objective import Needs, Objective

EPSILON = 1e-8


class KoLeo(Objective):
    """Kozachenko-Leonenko entropy of the student's image tokens: minus the mean log distance to the nearest neighbor.

    Per global crop over the images of a batch (of one part, when it is accumulated), summed over crops: crops of one
    image are never compared. Needs two images; with one the loss is 0.

    Source: Sablayrolles et al., "Spreading vectors for similarity search" (ICLR 2019); DINOv2, sec. 4, weight 0.1.
    Differs: the nearest image is sought among those of all ranks, so that their number changes nothing; in DINOv2's
    code every rank stands for itself.
    """

    def __init__(self, dim: int, config: KoLeoConfig, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self.needs = Needs(image_token=True)

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        image_tokens = student.global_crops.image_token.unflatten(0, (-1, student.num_images))  # [G, B, D]
        if student.num_images * world_size() < 2:
            return 0 * image_tokens.sum(), {}
        distances = nearest_distances(image_tokens)
        loss = -(distances + EPSILON).log().mean(dim=1).sum()
        return loss, {"nearest_distance": distances.detach().mean()}


def nearest_distances(tokens: Float[Tensor, "G B D"]) -> Float[Tensor, "G B"]:
    """Euclidean distance of every token's direction to the nearest other one of its group on any rank, in float32."""
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        candidates = gather_rows_with_gradient(unit.transpose(0, 1)).transpose(0, 1)  # [G, all B, D]
        with torch.no_grad():
            similarity = unit @ candidates.transpose(1, 2)
            own = own_rows(torch.arange(similarity.shape[2], device=unit.device), similarity.shape[1])
            similarity.scatter_(2, own.expand(len(unit), -1)[..., None], -torch.inf)
            nearest = similarity.argmax(dim=-1)  # [G, B]
        others = candidates.gather(1, nearest[..., None].expand_as(unit))
        return F.pairwise_distance(unit, others, eps=EPSILON)
