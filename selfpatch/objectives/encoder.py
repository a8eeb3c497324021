"""The network that student and teacher both have: a backbone, and the aggregator on top of it."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone, Tokens
from selfpatch.config import AggregatorConfig
from selfpatch.errors import UserError
from selfpatch.objectives.class_attention import Aggregator


class Encoded(NamedTuple):
    """Crops of one resolution, encoded by one network. Crop-major: V*B images.

    Args:
        layers: patch tokens after stages of the backbone that an objective needs, by the index of the stage.
    """

    tokens: Tokens
    image_token: Float[Tensor, "VB D"]
    layers: dict[int, Float[Tensor, "VB N D"]] = {}  # noqa: RUF012


class EncodedViews(NamedTuple):
    """All crops of a batch of `num_images` images, encoded by one network, student or teacher.

    Args:
        global_images: the global crops themselves, which another network may have to see.
        local_crops: None if no objective needs them of this network.
        masks: True where the student's global crops hold a mask token instead of the patch; None: nothing is masked.
        norm: the final norm of plain patch tokens, which aggregated tokens go through as well.
        aggregate: (patch tokens [V*B, N, D], indices [V*B, Q, P]) -> one token per set of patches [V*B, Q, D].
        global_boxes, local_boxes: where edges of the crops lie in their image: left, top, right, bottom in pixels, of a
            flipped crop left > right; None if no objective needs them.
    """

    num_images: int
    global_images: Float[Tensor, "GB C H W"]
    global_crops: Encoded
    local_crops: Encoded | None
    masks: Bool[Tensor, "GB N"] | None
    norm: Callable[[Float[Tensor, "VB N D"]], Float[Tensor, "VB N D"]]
    aggregate: Callable[[Float[Tensor, "VB N D"], Int[Tensor, "VB Q P"]], Float[Tensor, "VB Q D"]]
    global_boxes: Float[Tensor, "G B 4"] | None = None
    local_boxes: Float[Tensor, "L B 4"] | None = None

    @property
    def by_resolution(self) -> list[Encoded]:
        """One entry per resolution, the global crops first."""
        return [self.global_crops] if self.local_crops is None else [self.global_crops, self.local_crops]


class Encoder(nn.Module):
    """A backbone, and the aggregator that several objectives share.

    Args:
        image_token: that of an image where the aggregator does not make it, "class_token" or "mean" (of the patch
            tokens); None: the class token, and the mean of a hierarchical backbone, which never has one.

    Raises:
        UserError: the image token should be the class token, and the backbone has none; or nothing would be its final
            norm, which a file of it always has.
    """

    def __init__(
        self, backbone: Backbone, aggregator: AggregatorConfig | None = None, *, image_token: str | None = None
    ):
        super().__init__()
        self.backbone = backbone
        self.aggregator = Aggregator(backbone.embed_dim, backbone.num_heads, aggregator) if aggregator else None
        self.aggregates_image_token = aggregator is not None and aggregator.image_token == "aggregator"
        image_token = image_token or ("mean" if backbone.is_hierarchical else "class_token")
        self._averages_patches = image_token == "mean"
        if not self.aggregates_image_token and not self._averages_patches and not backbone.has_cls_token:
            raise UserError(
                f"{backbone.architecture.name} has no class token to describe an image; take the image token from the "
                "aggregator (aggregator.image-token aggregator), the mean of the patch tokens (backbone.image-token "
                "mean) or a backbone with one (backbone.class-token True)"
            )
        if backbone.is_hierarchical and self.aggregator is None and isinstance(backbone.final_norm, nn.Identity):
            raise UserError(
                f"backbone.final-norm is False, but timm's {backbone.architecture.name} always ends in a norm, and an "
                "exported file would lack it; set it to True, or use an aggregator, whose norm takes its place"
            )

    def forward(
        self,
        images: Float[Tensor, "VB C H W"],
        masks: Bool[Tensor, "VB N"] | None = None,
        layers: Sequence[int] = (),
    ) -> Encoded:
        if layers:
            assert masks is None, "layers are kept of the teacher, whose crops are not masked"
            tokens, maps = self.backbone.forward_with_intermediates(images, layers)
            kept = {layer: part.flatten(2).transpose(1, 2) for layer, part in zip(layers, maps, strict=True)}
        else:
            tokens, kept = self.backbone(images, masks), {}
        if self.aggregates_image_token:
            assert self.aggregator is not None
            return Encoded(tokens, self.aggregator.image_token(tokens.patch_tokens), kept)
        if self._averages_patches:
            return Encoded(tokens, tokens.patch_tokens.mean(dim=1), kept)
        assert tokens.cls_token is not None
        return Encoded(tokens, tokens.cls_token, kept)

    def encode(
        self,
        global_crops: Float[Tensor, "G B C H W"],
        local_crops: Float[Tensor, "L B C h w"] | None,
        masks: Bool[Tensor, "G B N"] | None = None,
        *,
        layers: Sequence[int] = (),
    ) -> EncodedViews:
        """Every crop once, one forward pass per resolution."""
        global_images = global_crops.flatten(0, 1)
        flat_masks = None if masks is None else masks.flatten(0, 1)
        return EncodedViews(
            num_images=global_crops.shape[1],
            global_images=global_images,
            global_crops=self(global_images, flat_masks, layers),
            local_crops=None if local_crops is None else self(local_crops.flatten(0, 1), None, layers),
            masks=flat_masks,
            norm=self.norm,
            aggregate=self.aggregate,
        )

    def norm(self, patch_tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return patch_tokens if self.aggregator is None else self.aggregator.norm(patch_tokens)

    def aggregate(self, patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]) -> Float[Tensor, "B Q D"]:
        assert self.aggregator is not None, "an objective that aggregates patches is built with an aggregator"
        return self.aggregator(patch_tokens, indices)

    def frozen_copy(self) -> "Encoder":
        """A copy that follows nothing. Replaced where this encoder is sharded (pretraining/parallel.py)."""
        return copy.deepcopy(self).requires_grad_(False)

    def export_backbone(self) -> Backbone:
        """A copy of the backbone as it is shipped: in evaluation mode, as timm runs it, with a final norm.

        A backbone without a norm of its own takes the aggregator's, which its patch tokens go through in training.
        """
        backbone = copy.deepcopy(self.backbone).eval()
        backbone.compile_blocks(None)  # images of all sizes will come
        if isinstance(backbone.final_norm, nn.Identity) and self.aggregator is not None:
            backbone.final_norm = copy.deepcopy(self.aggregator.norm)
            backbone.final_norm_from_aggregator = True
        backbone.pos_embed_interpolation = "antialias"
        return backbone
