"""MoCo v3: every global crop finds the teacher's other crop of the same image among those of the whole batch."""

import copy
import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.distributed import gather_rows, own_rows, world_size
from selfpatch.objectives.encoder import EncodedViews, Encoder
from selfpatch.objectives.objective import Needs, Objective
from selfpatch.objectives.projection_heads import BatchNorm


class MoCoV3(Objective):
    """Image-level contrastive objective.

    Queries are the student's image tokens through projector and predictor, keys the teacher's through its projector.
    A query is compared by cosine similarity with the keys of another crop of every image, over all ranks; its own
    image's is the right one. The loss is summed over the crops of an image, two in the paper. Batch norm sees one crop
    of each image at a time, of all ranks. Of an accumulated batch every part stands for itself. With one image the loss
    is 0.

    Source: MoCo v3 (ICCV 2021), algorithm 1; facebookresearch/moco-v3. Differs: of more than two crops a query is
    compared with the keys of each other one, and the mean is taken.
    """

    def __init__(self, dim: int, config: MoCoV3Config, *, steps_per_epoch: int):
        super().__init__()
        self.weight = config.weight
        self.needs = Needs(image_token=True)
        self._temperature, self._freeze_patch_embed = config.temperature, config.freeze_patch_embed
        hidden = [config.hidden_dim]
        self.projector = mlp([dim, *hidden * (config.projector_layers - 1), config.output_dim])
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.predictor = mlp([config.output_dim, *hidden * (config.predictor_layers - 1), config.output_dim])

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        student_tokens = student.global_crops.image_token.unflatten(0, (-1, student.num_images))  # [G, B, D]
        if student.num_images * world_size() < 2:
            return 0 * student_tokens.sum(), {}
        teacher_tokens = teacher.global_crops.image_token.unflatten(0, (-1, student.num_images))

        # 1. Keys of all ranks, and queries; crop by crop, as batch norm sees them.
        with torch.no_grad():
            keys = [gather_rows(self.teacher_projector(tokens)) for tokens in teacher_tokens]
        queries = [self.predictor(self.projector(tokens)) for tokens in student_tokens]

        # 2. InfoNCE over all pairs (query's crop, key's crop) of different crops.
        pairs = [
            info_nce(queries[i], keys[j], self._temperature) for i, j in itertools.permutations(range(len(queries)), 2)
        ]
        losses, hits = (torch.stack(values) for values in zip(*pairs, strict=True))
        return losses.sum() / (len(queries) - 1), {"accuracy": hits.mean()}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.projector, self.teacher_projector)]

    def frozen_parameters(self, encoder: Encoder, step: int) -> Iterable[nn.Parameter]:
        return encoder.backbone.model.patch_embed.parameters() if self._freeze_patch_embed else []


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers without bias, each with batch norm; ReLU between them, no scale and shift at the end."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inner, outer, bias=False), BatchNorm(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False), BatchNorm(widths[-1], affine=False))


def info_nce(
    queries: Float[Tensor, "B Z"], keys: Float[Tensor, "all Z"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy with each query's own key as the class, times 2 x temperature; and how often it is nearest.

    The factor makes the size of gradients independent of the temperature. In float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = F.normalize(queries.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T / temperature
    own = own_rows(torch.arange(len(keys), device=queries.device), len(queries))
    loss = 2 * temperature * F.cross_entropy(logits, own)
    return loss, (logits.detach().argmax(dim=-1) == own).float().mean()
