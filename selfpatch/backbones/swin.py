"""timm's Swin transformers of the first version, at any image size that is a multiple of the last stage's stride."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfpatch.backbones.activations import capture_activations
from selfpatch.backbones.attention import attention_keys
from selfpatch.backbones.backbone import ActivationCheckpointing, Architecture, Backbone, Stage, Tokens
from selfpatch.backbones.stochastic_depth import compile_blocks, set_drop_path, set_selective_checkpointing
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.errors import UserError

# With it timm's model takes any image size. Windows are those that it was built with.
ANY_SIZE = {"strict_img_size": False}


class Swin(Backbone):
    """A timm Swin transformer whose output is the last stage as `Tokens`, through its final norm; no class token.

    Args:
        model: built by timm with `ANY_SIZE` and no classifier.
        mean, std: normalization of its images.
    """

    is_hierarchical = True

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ):
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.mean, self.std = mean, std
        rows, columns = self.model.patch_embed.patch_size
        self.num_channels = self.model.patch_embed.proj.in_channels
        self.stages = [
            Stage(info["num_chs"], (rows * 2**i, columns * 2**i)) for i, info in enumerate(self.model.feature_info)
        ]
        self.embed_dim, self.patch_size = self.stages[-1]
        self.num_heads = self.blocks[-1].attn.num_heads
        for block in self.blocks:
            block.register_forward_pre_hook(shift_between_windows)

    @property
    def blocks(self) -> list[Any]:
        return [block for layer in self.model.layers for block in layer.blocks]

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B N"] | None = None) -> Tokens:
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        with self._masked(masks, grid_size):
            x = self.model.forward_features(images)  # [B, R, S, D]
        return Tokens(None, x.flatten(1, 2), grid_size)

    def pre_norm_tokens(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        if not self.final_norm_from_aggregator:
            return self(images)
        (norm,) = capture_activations([self.final_norm], self, images)
        return Tokens(None, norm.input.flatten(1, 2), self.grid_size((images.shape[-2], images.shape[-1])))

    def forward_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        layers = [self.model.layers[index] for index in indices]
        return [stage.output.permute(0, 3, 1, 2) for stage in capture_activations(layers, self, images)]

    def last_attention_keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D R S"]:
        block = self.blocks[-1]
        # Of the whole map, not window by window: a key depends on its own token alone.
        (norm,) = capture_activations([block.norm1], self, images)
        return attention_keys(block.attn, norm.output).permute(0, 3, 1, 2)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = image_size
        if rows % self.patch_size[0] or columns % self.patch_size[1]:
            raise UserError(
                f"an image of {rows} x {columns} pixels has no whole number of places of {self.patch_size[0]} x "
                f"{self.patch_size[1]} in the last stage; both sides must be multiples: crop, pad or resize it"
            )
        return rows // self.patch_size[0], columns // self.patch_size[1]

    def enable_masks(self) -> None:
        self._add_mask_token(self.stages[0].embed_dim)

    def set_drop_path(self, rate: float) -> None:
        set_drop_path(self.blocks, rate)

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        self.model.set_grad_checkpointing(mode == "full")
        set_selective_checkpointing(self.blocks, mode == "selective")

    def compile_blocks(self, backend: str | Callable | None = "inductor") -> None:
        compile_blocks(self.blocks, backend)

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Do nothing: its positions are relative, within a window."""


def shift_between_windows(block: Any, inputs: tuple[Tensor, ...]) -> None:
    """Set the shift of a block before it sees a map: none along a side that one window covers.

    So it was trained; with `ANY_SIZE` timm would decide it by the size that the model was built for.
    """
    _, rows, columns, _ = inputs[0].shape
    row_shift, column_shift = (
        min(shift, window // 2) for shift, window in zip(block.target_shift_size, block.window_size, strict=True)
    )
    block.shift_size = (
        row_shift if rows > block.window_size[0] else 0,
        column_shift if columns > block.window_size[1] else 0,
    )
