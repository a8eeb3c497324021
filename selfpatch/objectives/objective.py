"""The contract between one term of the loss and the rest, and what every term is given."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone, Tokens
from selfpatch.config import AggregatorConfig
from selfpatch.errors import UserError
from selfpatch.objectives.class_attention import Aggregator

M = TypeVar("M", bound=nn.Module)


class Encoder(nn.Module):
    """A backbone and the aggregator that several terms share: the part of the network that student and teacher have."""

    def __init__(self, backbone: Backbone, aggregator: AggregatorConfig | None = None):
        super().__init__()
        self.backbone = backbone
        self.aggregator = Aggregator(backbone.embed_dim, backbone.num_heads, aggregator) if aggregator else None
        self._aggregates_image_token = aggregator is not None and aggregator.image_token == "aggregator"
        if not self._aggregates_image_token and not backbone.has_cls_token:
            raise UserError(
                f"{backbone.architecture.name} has no class token to describe an image; take the image token from the "
                "aggregator (aggregator.image-token aggregator) or a backbone with one (backbone.class-token True)"
            )

    def image_token(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        if self._aggregates_image_token:
            assert self.aggregator is not None
            return self.aggregator.image_token(tokens.patch_tokens)
        assert tokens.cls_token is not None
        return tokens.cls_token


class EncodedViews(NamedTuple):
    """What one network, student or teacher, made of a batch of `num_images` images. Crop-major: [V*B, ...]."""

    encoder: Encoder
    num_images: int
    global_crops: Tokens
    local_crops: Tokens | None

    @property
    def sizes(self) -> list[Tokens]:
        """The crops, one entry a resolution, the global ones first."""
        return [self.global_crops] if self.local_crops is None else [self.global_crops, self.local_crops]


class Objective(nn.Module):
    """One term of the loss.

    `forward` returns the unweighted term and its signals. It must leave the module's state alone: what a step should
    change (centres, queues) is remembered, and done by `commit` when the step is accepted, once for all the parts of an
    accumulated batch, or dropped by `discard` when it is not. So a target never sees its own step.
    """

    # What each network has to encode for this term.
    teacher_crops: Literal["global", "all"] = "global"
    student_crops: Literal["global", "all"] = "all"
    weight: float

    def forward(
        self, student: EncodedViews, teacher: EncodedViews, step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        raise NotImplementedError

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(student's, teacher's) modules; the second follows the first as an exponential moving average."""
        return []

    def frozen_parameters(self, step: int) -> Iterable[nn.Parameter]:
        """Parameters that take no part in this step."""
        return []

    def commit(self) -> None:
        """The step counts: update centres and the like."""

    def discard(self) -> None:
        """The step does not count: forget what `forward` remembered."""


def without_gradient(module: M) -> M:
    """The same module, with no parameter that is trained."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
