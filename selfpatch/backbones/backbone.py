"""The contract of a backbone: all that pretraining, evaluation, pictures and export know of a network.

Axis letters in the whole package:

    B images        V views (crops)   N patch tokens     D embedding     K prototypes
    P positives     M neighbors       C classes          H W pixels      R S rows and columns of the patch grid

`V*B` is crop-major: all images of crop 0, then all images of crop 1, and so on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, RGB_8, PixelFormat
from selfpatch.errors import UserError


class Tokens(NamedTuple):
    """The tokens of a batch of images, all of one size."""

    cls_token: Float[Tensor, "B D"] | None
    patch_tokens: Float[Tensor, "B N D"]  # row-major, N = rows * columns
    grid_size: tuple[int, int]  # (rows, columns)


class Stage(NamedTuple):
    """A place in a network where its tokens can be taken as a feature map."""

    embed_dim: int
    stride_px: tuple[int, int]  # pixels of the image per place of the map: (rows, columns)


class Architecture(NamedTuple):
    """The name and arguments with which `timm.create_model` builds the network again."""

    name: str
    arguments: dict[str, Any]

    def as_code(self, **more: Any) -> str:
        """The line of Python that builds it."""
        arguments = "".join(f", {name}={value!r}" for name, value in {**self.arguments, **more}.items())
        return f"timm.create_model({self.name!r}{arguments})"


ActivationCheckpointing = Literal["none", "selective", "full"]


class Backbone(nn.Module):
    """A network from images to `Tokens`, at any image size that is a multiple of `patch_size`.

    A subclass sets the attributes and implements `forward`; the other methods raise NotImplementedError where it has no
    answer.
    """

    # timm's network: its tensors and their names are what an exported file holds.
    model: Any  # timm's attributes have no types
    architecture: Architecture
    embed_dim: int
    # Pixels per output token: (rows, columns). The total stride of a hierarchical network.
    patch_size: tuple[int, int]
    num_channels: int = 3
    # How its images are read: channels, depth and range of values.
    pixels: PixelFormat = RGB_8
    # Normalization of its images, for values in [0, 1].
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # As timm's feature_info: one per block of a plain vision transformer, one per stage of a hierarchical one.
    stages: Sequence[Stage] = ()
    has_cls_token: bool = False
    # True for stages of several resolutions. timm's models of this kind have no class token and always a final norm.
    is_hierarchical: bool = False
    # Attention heads of the last block; an aggregator on top has as many.
    num_heads: int = 1
    # Notes about the weights, shown to the user after loading.
    notes: tuple[str, ...] = ()
    # True if its final norm is borrowed from the aggregator: positives are then found in the tokens before it.
    final_norm_from_aggregator: bool = False
    # Replaces the embedding of masked patches, [1, D]; None before `enable_masks`.
    mask_token: nn.Parameter | None

    def __init__(self):
        super().__init__()
        self.register_parameter("mask_token", None)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch would register a module under the name of a property instead of calling its setter.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def blocks(self) -> list[Any]:
        """timm's blocks, first to last; of all stages, where there are stages."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """(rows, columns) in pixels of the images that it was built for."""
        return tuple(self.model.patch_embed.img_size)

    # From images to tokens

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B N"] | None = None) -> Tokens:
        """Encode images.

        Args:
            masks: True at patches (row-major on the output's grid) whose embedding is replaced by `mask_token` before
                positions are added, as in iBOT and DINOv2.

        Raises:
            UserError: the image size is no multiple of the patch size, or masks come before `enable_masks`.
        """
        raise NotImplementedError

    def forward_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Feature maps [B, D, R, S] of the given stages (from 0, or from the end by -1, ...), before the final norm."""
        raise NotImplementedError

    def forward_with_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> tuple[Tokens, list[Float[Tensor, "B _ _ _"]]]:
        """`forward` and `forward_intermediates` in one pass."""
        outputs: list[Tokens] = []
        handle = self.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            maps = self.forward_intermediates(images, indices)
        finally:
            handle.remove()
        return outputs[0], maps

    def last_attention_keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D R S"]:
        """Keys of the last attention for every patch, all heads side by side, before any rotation."""
        raise NotImplementedError

    def cls_attention(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h R S"]:
        """Attention of the class token to every patch in the last block; the rest to 1 goes to itself and registers.

        Raises:
            UserError: it has no class token.
        """
        raise UserError(f"{self.architecture.name} has no class token whose attention could be shown")

    def pre_norm_tokens(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Tokens before the final norm where that norm was borrowed from the aggregator, else the output."""
        assert not self.final_norm_from_aggregator
        return self(images)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patch tokens of an image of (rows, columns) pixels.

        Raises:
            UserError: a side is no multiple of the patch size.
        """
        if image_size[0] % self.patch_size[0] or image_size[1] % self.patch_size[1]:
            raise UserError(
                f"an image of {image_size[0]} x {image_size[1]} pixels cannot be cut into patches of "
                f"{self.patch_size[0]} x {self.patch_size[1]}; both sides must be multiples: crop, pad or resize it"
            )
        return image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1]

    # Changes before training

    def freeze_below_last_blocks(self, num_blocks: int) -> None:
        """Train only the last `num_blocks` blocks and what comes after each of them: downsampling, the final norm.

        Raises:
            UserError: it has fewer blocks.
        """
        if num_blocks > len(self.blocks):
            raise UserError(
                f"optim.trainable-blocks is {num_blocks}, and {self.architecture.name} has {len(self.blocks)} blocks; "
                "give a smaller number, or leave it out to train the whole backbone"
            )
        first = next(self.blocks[-num_blocks].parameters())
        trains = False
        for parameter in self.model.parameters():  # in timm's order, which is that of the forward pass
            trains = trains or parameter is first
            parameter.requires_grad_(trains)

    def enable_masks(self) -> None:
        """Add the learned `mask_token`, zero at first as in iBOT and DINOv2, for `forward` with masks.

        Raises:
            UserError: its patches cannot be masked.
        """
        raise UserError(
            f"an objective masks patches, and {self.architecture.name} has none that could be masked; leave out its "
            "masks, or choose another backbone"
        )

    def set_drop_path(self, rate: float) -> None:
        """Set stochastic depth that rises evenly from 0 at the first block to `rate` at the last."""
        raise NotImplementedError

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        """Choose what backward recomputes: nothing, outputs of norms and activations ("selective"), or whole blocks."""
        raise NotImplementedError

    def compile_blocks(self, backend: str | Callable | None = "inductor") -> None:
        """Compile every block when it next runs, one graph per crop size; None: run blocks uncompiled."""
        raise NotImplementedError

    def set_num_heads(self, num_heads: int) -> None:
        """Split queries, keys and values into another number of heads than they were trained with.

        Raises:
            UserError: the network cannot be split so.
        """
        raise UserError(
            f"only a plain vision transformer can be cut into another number of attention heads ({num_heads}), and "
            "this backbone is none; leave it out"
        )

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Permanently resample learned position embeddings to the grid of images of (rows, columns) pixels.

        The tokens of such images stay the same; trained from here, each of their patches has a position of its own.
        """
        raise NotImplementedError

    @property
    def pos_embed_interpolation(self) -> str:
        """Interpolation of learned position embeddings: "antialias" as timm, or "offset" as DINO's code. Settable.

        Raises:
            UserError: when set to "offset" on a network without learned position embeddings only.
        """
        return "antialias"

    @pos_embed_interpolation.setter
    def pos_embed_interpolation(self, value: str) -> None:
        self._require_antialias(value)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the output, nn.Identity where there is none. Settable."""
        return self.model.norm

    @final_norm.setter
    def final_norm(self, norm: nn.Module) -> None:
        self.model.norm = norm

    def remove_final_norm(self) -> None:
        """Remove the norm that no stage goes through: DDP rejects parameters without gradients."""
        self.final_norm = nn.Identity()

    def _require_antialias(self, value: str) -> None:
        if value != "antialias":
            raise UserError(
                f"pos-embed-interpolation is {value}, but {self.architecture.name} has other position embeddings than "
                "learned ones, or none; use pos-embed-interpolation antialias"
            )

    def _add_mask_token(self, width: int) -> None:
        if self.mask_token is None:
            self.mask_token = nn.Parameter(torch.zeros(1, width, device=next(self.model.parameters()).device))

    @contextmanager
    def _masked(self, masks: Bool[Tensor, "B N"] | None, grid_size: tuple[int, int]) -> Iterator[None]:
        """Replace what timm's patch embedding [B, R, S, D] gives for masked patches inside; the rest runs as ever."""
        if masks is None:
            yield
            return
        token = self.mask_token
        if token is None:
            raise UserError("patches are masked, and the backbone has no mask token; call enable_masks() once before")
        grid = masks.unflatten(1, grid_size)[..., None]

        def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # A token of a hierarchical network covers several embeddings.
            rows, columns = output.shape[1] // grid_size[0], output.shape[2] // grid_size[1]
            masked = grid.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
            return torch.where(masked, token.to(output.dtype), output)

        hook = self.model.patch_embed.register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()
