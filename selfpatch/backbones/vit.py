"""timm's vision transformers of the `VisionTransformer` and `Eva` families."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfpatch.backbones.activations import capture_activations
from selfpatch.backbones.attention import attention_keys, find_attentions, recorded_attention
from selfpatch.backbones.backbone import ActivationCheckpointing, Architecture, Backbone, Stage, Tokens
from selfpatch.backbones.pos_embed import OffsetPosEmbedViT, resample_with_offset, split_positions
from selfpatch.backbones.stochastic_depth import compile_blocks, set_drop_path, set_selective_checkpointing
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.errors import UserError


class ViT(Backbone):
    """A timm vision transformer whose output is `Tokens`: through its final norm, registers dropped.

    Where position was removed (position_removal.py) the output goes through that linear map, timm's `head`, as well.

    Args:
        model: built by timm with `dynamic_img_size=True` and no classifier.
        pos_embed_interpolation: interpolation of learned position embeddings to other image sizes. "antialias" is
            what plain timm will do with the exported file; "offset" what DINO and the original SelfPatch trained with.
            They differ by up to 0.012 where embeddings have a standard deviation of 0.02.
        mean, std: normalization of its images.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        *,
        pos_embed_interpolation: str = "antialias",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ):
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.mean, self.std = mean, std
        self.pos_embed_interpolation = pos_embed_interpolation
        self.patch_size = self.model.patch_embed.patch_size
        self.num_channels = self.model.patch_embed.proj.in_channels
        self.embed_dim = self.model.embed_dim
        self.num_heads = find_attentions(self.blocks[-1])[0].num_heads
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.has_cls_token = getattr(model, "cls_token", None) is not None
        self.stages = [Stage(self.embed_dim, self.patch_size)] * len(self.blocks)

    @property
    def blocks(self) -> list[Any]:
        return list(self.model.blocks)

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B N"] | None = None) -> Tokens:
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        with self._masked(masks, grid_size):
            x = self.model.head(self.model.forward_features(images))
        return self._to_tokens(x, x, grid_size)

    def pre_norm_tokens(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        if not self.final_norm_from_aggregator:
            return self(images)
        (norm,) = capture_activations([self.final_norm], self, images)
        return self._to_tokens(
            self.model.head(norm.output), norm.input, self.grid_size((images.shape[-2], images.shape[-1]))
        )

    def forward_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Patch tokens after the given blocks (from 0, or from the end by -1, -2, ...), before the final norm."""
        blocks = [self.blocks[index] for index in indices]
        return [self._to_feature_map(block.output, images) for block in capture_activations(blocks, self, images)]

    def last_attention_keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D R S"]:
        attentions = find_attentions(self.blocks[-1])
        activations = capture_activations(attentions, self, images)
        keys = [attention_keys(attention, x) for attention, (x, _) in zip(attentions, activations, strict=True)]
        return self._to_feature_map(torch.cat(keys, dim=-1), images)

    def cls_attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h R S"]:
        if not self.has_cls_token:
            return super().cls_attention(images)
        with recorded_attention(find_attentions(self.blocks[-1])) as weights:
            grid_size = self(images).grid_size
        heads = torch.cat(weights, dim=1)  # [B, h, T, T]
        return heads[:, :, 0, self.num_prefix_tokens :].float().unflatten(-1, grid_size)

    def enable_masks(self) -> None:
        self._add_mask_token(self.embed_dim)

    def set_drop_path(self, rate: float) -> None:
        set_drop_path(self.blocks, rate)

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        self.model.set_grad_checkpointing(mode == "full")
        set_selective_checkpointing(self.blocks, mode == "selective")

    def compile_blocks(self, backend: str | Callable | None = "inductor") -> None:
        compile_blocks(self.blocks, backend)

    def set_num_heads(self, num_heads: int) -> None:
        """Split queries, keys and values into another number of heads than they were trained with.

        Raises:
            UserError: the width is no multiple of it, or something in the attention is made for the width of a head:
                rotary position embeddings, norms of queries and keys, differential attention.
        """
        if self.embed_dim % num_heads:
            raise UserError(
                f"a width of {self.embed_dim} cannot be cut into {num_heads} attention heads; choose a divisor"
            )
        attentions = [attention for block in self.blocks for attention in find_attentions(block)]
        if not all(type(part) is Attention and isinstance(part.q_norm, nn.Identity) for part in attentions):
            raise UserError(
                f"the position embeddings or norms of {self.architecture.name} are made for its own {self.num_heads} "
                "attention heads; only transformers as DINO trained them can be cut into others"
            )
        self.num_heads = num_heads
        for attention in attentions:
            attention.num_heads, attention.head_dim = num_heads, self.embed_dim // num_heads
            attention.scale = attention.head_dim**-0.5

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        model, grid_size = self.model, self.grid_size(image_size)
        if getattr(model, "pos_embed", None) is None or grid_size == model.patch_embed.grid_size:
            return
        if self.pos_embed_interpolation == "antialias":
            model.set_input_size(img_size=image_size)
            return
        prefix, patches = split_positions(model)
        patches = resample_with_offset(patches, model.patch_embed.grid_size, grid_size)
        model.patch_embed.set_input_size(img_size=image_size)
        model.pos_embed = nn.Parameter(torch.cat([prefix, patches], dim=1).detach())

    @property
    def pos_embed_interpolation(self) -> str:
        return "offset" if isinstance(self.model, OffsetPosEmbedViT) else "antialias"

    @pos_embed_interpolation.setter
    def pos_embed_interpolation(self, value: str) -> None:
        # Subclasses of timm's have a forward of their own, with a distillation token, say.
        is_plain = type(self.model) in (VisionTransformer, OffsetPosEmbedViT) and self.model.pos_embed is not None
        if is_plain:
            self.model.__class__ = OffsetPosEmbedViT if value == "offset" else VisionTransformer
        else:
            self._require_antialias(value)

    def _to_tokens(
        self, cls: Float[Tensor, "B T D"], patches: Float[Tensor, "B T D"], grid_size: tuple[int, int]
    ) -> Tokens:
        return Tokens(cls[:, 0] if self.has_cls_token else None, patches[:, self.num_prefix_tokens :], grid_size)

    def _to_feature_map(
        self, tokens: Float[Tensor, "B T D"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B D R S"]:
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        return tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid_size)
