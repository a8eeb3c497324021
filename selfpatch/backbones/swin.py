"""timm's Swin transformers as `Tokens`, at any image size that is a multiple of the last stage's stride."""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from selfpatch.backbones.tokens import Stage, Tokens
from selfpatch.backbones.vit import Architecture, capture_activations, key_projection, set_drop_path
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.errors import UserError

# What makes timm's model take any image size, with windows of the size it was made with.
ANY_SIZE = {"strict_img_size": False, "always_partition": True}


def create_timm_swin(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` for Swin transformers of the first version.

    Raises:
        UserError: an unknown name (the nearest ones are given), or another family.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models("swin_*"), n=3, cutoff=0.3)
        raise UserError(f"unknown backbone {name!r}; timm has no such model. Nearest: {', '.join(nearest) or 'none'}")
    model = timm.create_model(name, **arguments)
    if not isinstance(model, SwinTransformer):
        raise UserError(
            f"{name!r} is a {type(model).__name__}; of Swin transformers the first version can be read, e.g. "
            "swin_tiny_patch4_window7_224"
        )
    return model


class Swin(nn.Module):
    """A timm Swin transformer whose output is the last stage as `Tokens`, through its final norm; no class token.

    Args:
        model: built by `create_timm_swin` with `ANY_SIZE` and no classifier.
        mean, std: what its images are normalised with.
    """

    notes: tuple[str, ...] = ()
    has_cls_token = False

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ):
        super().__init__()
        self.model: Any = model  # timm's attributes have no types
        self.architecture = architecture
        self.mean, self.std = mean, std
        rows, columns = self.model.patch_embed.patch_size
        # One a stage.
        self.stages = [
            Stage(info["num_chs"], (rows * 2**i, columns * 2**i)) for i, info in enumerate(self.model.feature_info)
        ]
        self.embed_dim, self.patch_size = self.stages[-1]
        for layer in self.model.layers:
            for block in layer.blocks:
                block.register_forward_pre_hook(shift_between_windows)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        self._refuse_other_sizes(images)
        x = self.model.forward_features(images)  # [B, R, S, D]
        return Tokens(None, x.flatten(1, 2), (x.shape[1], x.shape[2]))

    def stage_maps(self, images: Float[Tensor, "B 3 H W"], stages: Sequence[int]) -> list[Float[Tensor, "B D R S"]]:
        """What the given stages make of the images, without a norm; strides are those of `self.stages`."""
        self._refuse_other_sizes(images)
        layers = [self.model.layers[stage] for stage in stages]
        return [
            call.output.permute(0, 3, 1, 2) for call in capture_activations(layers, self.model.forward_features, images)
        ]

    def last_attention_keys(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D R S"]:
        """The keys of the last block's attention, all heads side by side."""
        self._refuse_other_sizes(images)
        block = self.model.layers[-1].blocks[-1]
        # Of the whole map, not window by window: a key depends on its own token alone.
        (call,) = capture_activations([block.norm1], self.model.forward_features, images)
        return F.linear(call.output, *key_projection(block.attn)).permute(0, 3, 1, 2)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth that rises evenly from 0 at the first block to `rate` at the last."""
        set_drop_path([block for layer in self.model.layers for block in layer.blocks], rate)

    def remove_final_norm(self) -> None:
        """For who reads stages only: no parameter is left without a gradient, which distributed training refuses."""
        self.model.norm = nn.Identity()

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Nothing to do: its positions are relative, within a window."""

    def set_recompute(self, recompute: bool) -> None:
        """Whether blocks compute their activations again in the backward pass instead of keeping them."""
        self.model.set_grad_checkpointing(recompute)

    def _refuse_other_sizes(self, images: Float[Tensor, "B 3 H W"]) -> None:
        rows, columns = images.shape[-2:]
        if rows % self.patch_size[0] or columns % self.patch_size[1]:
            raise UserError(
                f"an image of {rows} x {columns} pixels has no whole number of places of {self.patch_size[0]} x "
                f"{self.patch_size[1]} in the last stage; both sides must be multiples: crop, pad or resize it"
            )


def shift_between_windows(block: Any, inputs: tuple[Tensor, ...]) -> None:
    """Before a block sees a map: along a side that one window covers, windows are not shifted.

    So it was trained; with `ANY_SIZE` timm shifts them always, which changes the last stage at the size of training.
    """
    _, rows, columns, _ = inputs[0].shape
    row_shift, column_shift = block.target_shift_size
    block.shift_size = (
        row_shift if rows > block.window_size[0] else 0,
        column_shift if columns > block.window_size[1] else 0,
    )
