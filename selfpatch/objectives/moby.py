"""MoBY: every global crop finds the teacher's other crop of the same image among those of earlier batches."""

import copy
import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfpatch.config.objectives.moby import MoBYConfig
from selfpatch.distributed import gather_rows, world_size
from selfpatch.objectives.encoder import EncodedViews
from selfpatch.objectives.objective import Needs, Objective
from selfpatch.objectives.projection_heads import BatchNorm


class MoBY(Objective):
    """Image-level contrastive objective with a queue: small batches have many negatives too.

    Queries are the student's image tokens through projector and predictor, keys the teacher's through its projector. A
    query is compared by cosine similarity with the key of another crop of its image, the right one, and with a queue
    of such keys of earlier steps. Every kind of crop has its queue: the first, and the others, which are augmented in
    another way. The keys of a step enter their queue in `commit`, those of all ranks, and the oldest leave; so no query
    is compared with a negative of its own step. The loss is summed over the crops of an image, two in the paper. Batch
    norm sees one crop of each image at a time, of all ranks. With one image the loss is 0.

    Source: MoBY (arXiv 2105.04553), sec. 3; SwinTransformer/Transformer-SSL@4510de1 models/moby.py. Differs: the
    teacher follows after a step, not before the next; more than two crops, of which the second fills the other queue.
    """

    queues: Float[Tensor, "2 Q Z"]
    next_place: Int[Tensor, ""]

    def __init__(self, dim: int, config: MoBYConfig, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self.needs = Needs(image_token=True)
        self._temperature = config.temperature
        hidden = [config.hidden_dim]
        self.projector = mlp([dim, *hidden * (config.projector_layers - 1), config.output_dim])
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.predictor = mlp([config.output_dim, *hidden * (config.predictor_layers - 1), config.output_dim])
        self.register_buffer("queues", F.normalize(torch.randn(2, config.queue_size, config.output_dim), dim=-1))
        self.register_buffer("next_place", torch.tensor(0))
        self._keys: list[Float[Tensor, "2 B Z"]] = []

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        student_tokens = student.global_crops.image_token.unflatten(0, (-1, student.num_images))  # [G, B, D]
        if student.num_images * world_size() < 2:
            return 0 * student_tokens.sum(), {}
        teacher_tokens = teacher.global_crops.image_token.unflatten(0, (-1, student.num_images))

        # 1. Keys and queries; crop by crop, as batch norm sees them.
        with torch.no_grad():
            keys = [F.normalize(self.teacher_projector(tokens).float(), dim=-1) for tokens in teacher_tokens]
            self._keys.append(torch.stack([gather_rows(crop) for crop in keys[:2]]))
        queries = [F.normalize(self.predictor(self.projector(tokens)).float(), dim=-1) for tokens in student_tokens]

        # 2. InfoNCE over all pairs (query's crop, key's crop) of different crops.
        pairs = [
            info_nce(queries[i], keys[j], self.queues[min(j, 1)], self._temperature)
            for i, j in itertools.permutations(range(len(queries)), 2)
        ]
        losses, hits = (torch.stack(values) for values in zip(*pairs, strict=True))
        return losses.sum() / (len(queries) - 1), {"accuracy": hits.mean()}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.projector, self.teacher_projector)]

    def commit(self) -> None:
        """Put the keys of the step, of all its parts, in the place of the oldest."""
        if self._keys:
            size = self.queues.shape[1]
            keys = torch.cat(self._keys, dim=1)[:, -size:]
            places = (self.next_place + torch.arange(keys.shape[1], device=keys.device)) % size
            self.queues[:, places] = keys
            self.next_place.copy_((self.next_place + keys.shape[1]) % size)
        self.discard()

    def discard(self) -> None:
        self._keys.clear()


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers, with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inner, outer), BatchNorm(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def info_nce(
    queries: Float[Tensor, "B Z"], keys: Float[Tensor, "B Z"], queue: Float[Tensor, "Q Z"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy with each query's own key as the class, beside the queue; and how often it is nearest.

    Of unit vectors, in float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(dim=-1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=-1) / temperature
    own_key = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    hits = logits.detach().argmax(dim=-1) == 0
    return F.cross_entropy(logits, own_key), hits.float().mean()
