"""timm's vision transformers of the `VisionTransformer` and `Eva` families as `Tokens`, at any image size and grid."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from timm.models import checkpoint_seq
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfpatch.backbones.stochastic_depth import SubsetDropPathBlock, compile_blocks, use_subset_drop_path
from selfpatch.backbones.tokens import Stage, Tokens
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.errors import UserError


class Architecture(NamedTuple):
    """What `timm.create_model` needs to build the network again."""

    name: str
    arguments: dict[str, Any]

    def as_code(self, **more: Any) -> str:
        """The line of Python that builds it."""
        arguments = "".join(f", {name}={value!r}" for name, value in {**self.arguments, **more}.items())
        return f"timm.create_model({self.name!r}{arguments})"


class ViT(nn.Module):
    """A timm vision transformer whose output is `Tokens`: through its final norm, registers dropped.

    Args:
        model: built by timm with `dynamic_img_size=True` and no classifier.
        pos_embed_interpolation: how learned position embeddings follow the image size. "timm" is what plain timm
            will do with the exported file; "dino" what DINO and the original SelfPatch trained with. They differ by
            up to 0.012 where embeddings have a standard deviation of 0.02.
        mean, std: what its images are normalised with.
    """

    # What should be known of its weights, by whoever loaded them.
    notes: tuple[str, ...] = ()
    # Whether its final norm is the aggregator's: SelfPatch then looks for positives in the tokens before it.
    final_norm_from_aggregator = False

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        *,
        pos_embed_interpolation: str = "timm",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ):
        super().__init__()
        if pos_embed_interpolation == "dino" and (not isinstance(model, VisionTransformer) or model.pos_embed is None):
            raise UserError(
                f"{architecture.name} is not of the kind that DINO trained, with learned position embeddings only; use "
                "pos-embed-interpolation 'timm'"
            )
        self.model: Any = model  # timm's attributes have no types
        self.architecture = architecture
        self.pos_embed_interpolation = pos_embed_interpolation
        self.mean, self.std = mean, std
        self.patch_size: tuple[int, int] = self.model.patch_embed.patch_size
        self.embed_dim: int = self.model.embed_dim
        self.num_heads: int = self.model.blocks[0].attn.num_heads
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.has_cls_token = getattr(model, "cls_token", None) is not None
        # One a block.
        self.stages = [Stage(self.embed_dim, self.patch_size)] * len(self.model.blocks)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        if self.pos_embed_interpolation == "dino":
            x = self._forward_dino(images)
        else:
            x = self.model.forward_features(images)
        cls_token = x[:, 0] if self.has_cls_token else None
        return Tokens(cls_token, x[:, self.num_prefix_tokens :], grid_size)

    def pre_norm_tokens(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Its tokens as SelfPatch compares them in training: as the backbone alone gives them, without a lent norm."""
        if not self.final_norm_from_aggregator:
            return self(images)
        (norm,) = capture_activations([self.model.norm], self, images)
        cls_token = norm.output[:, 0] if self.has_cls_token else None
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        return Tokens(cls_token, norm.input[:, self.num_prefix_tokens :], grid_size)

    def stage_maps(self, images: Float[Tensor, "B 3 H W"], stages: Sequence[int]) -> list[Float[Tensor, "B D R S"]]:
        """Patch tokens after the given blocks (from 0, or from the end by -1, -2, ...), before the final norm."""
        blocks = [self.model.blocks[stage] for stage in stages]
        return [self._to_feature_map(call.output, images) for call in capture_activations(blocks, self, images)]

    def last_attention_keys(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D R S"]:
        """The keys of the last block's attention for every patch, all heads side by side, before any rotation."""
        attention = self.model.blocks[-1].attn
        (call,) = capture_activations([attention], self, images)
        return self._to_feature_map(F.linear(call.input, *key_projection(attention)), images)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth that rises evenly from 0 at the first block to `rate` at the last."""
        set_drop_path(list(self.model.blocks), rate)

    def compile_blocks(self, backend: str | Callable | None = "inductor") -> None:
        """Compile every block when it next runs, one graph a crop size; None: run blocks as they are."""
        compile_blocks(self.model.blocks, backend)

    def set_num_heads(self, num_heads: int) -> None:
        """Cut queries, keys and values into another number of heads than they were trained in.

        Raises:
            UserError: the width is no multiple of it, or position embeddings are made for the width of a head (RoPE).
        """
        if self.embed_dim % num_heads:
            raise UserError(
                f"a width of {self.embed_dim} cannot be cut into {num_heads} attention heads; choose a divisor"
            )
        if not isinstance(self.model, VisionTransformer):
            raise UserError(
                f"the position embeddings of {self.architecture.name} are made for its own {self.num_heads} attention "
                "heads; only transformers as DINO trained them can be cut into others"
            )
        self.num_heads = num_heads
        for block in self.model.blocks:
            block.attn.num_heads, block.attn.head_dim = num_heads, self.embed_dim // num_heads
            block.attn.scale = block.attn.head_dim**-0.5

    def remove_final_norm(self) -> None:
        """For who reads stages only: no parameter is left without a gradient, which distributed training refuses."""
        self.model.norm = nn.Identity()

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Resample a learned position embedding for good, to the grid of images of (rows, columns) in pixels.

        What the network makes of such images stays the same; trained from here, every patch of theirs has a position
        of its own, and those of other sizes are resampled from these.
        """
        model, grid_size = self.model, self.grid_size(image_size)
        if getattr(model, "pos_embed", None) is None or grid_size == model.patch_embed.grid_size:
            return
        if self.pos_embed_interpolation == "timm":
            model.set_input_size(img_size=image_size)
            return
        prefix, patches = self._split_positions()
        patches = resample_positions_dino(patches, model.patch_embed.grid_size, grid_size)
        model.patch_embed.set_input_size(img_size=image_size)
        model.pos_embed = nn.Parameter(torch.cat([prefix, patches], dim=1).detach())

    def set_recompute(self, recompute: bool) -> None:
        """Whether blocks compute their activations again in the backward pass instead of keeping them."""
        self.model.set_grad_checkpointing(recompute)

    def set_activation_recompute(self, recomputes_activations: bool) -> None:
        """Whether blocks make again what their norms and activation functions made, and keep the rest."""
        for block in self.model.blocks:
            if isinstance(block, SubsetDropPathBlock):
                block.recomputes_activations = recomputes_activations

    def _to_feature_map(
        self, tokens: Float[Tensor, "B T D"], images: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B D R S"]:
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        return tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid_size)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (rows, columns) pixels.

        Raises:
            UserError: a side is not a multiple of the patch size.
        """
        if image_size[0] % self.patch_size[0] or image_size[1] % self.patch_size[1]:
            raise UserError(
                f"an image of {image_size[0]} x {image_size[1]} pixels cannot be cut into patches of "
                f"{self.patch_size[0]} x {self.patch_size[1]}; both sides must be multiples: crop, pad or resize it"
            )
        return image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1]

    def _forward_dino(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        model = self.model
        x = model.patch_embed(images)
        x = x.flatten(1, 2) if x.ndim == 4 else x  # [B, N, D]
        prefix = [t.expand(len(x), -1, -1) for t in (model.cls_token, model.reg_token) if t is not None]
        prefix_positions, patch_positions = self._split_positions()
        grid_size = self.grid_size((images.shape[-2], images.shape[-1]))
        x = x + resample_positions_dino(patch_positions, model.patch_embed.grid_size, grid_size)
        if prefix:
            prefix_tokens = torch.cat(prefix, dim=1)
            if prefix_positions.shape[1]:
                prefix_tokens = prefix_tokens + prefix_positions
            x = torch.cat([prefix_tokens, x], dim=1)
        x = model.norm_pre(model.patch_drop(model.pos_drop(x)))
        x = checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x)
        return model.norm(x)

    def _split_positions(self) -> tuple[Float[Tensor, "1 T D"], Float[Tensor, "1 N D"]]:
        """Position embeddings of the class token and registers, if they have any, and of the patches."""
        num_prefix = 0 if self.model.no_embed_class else self.num_prefix_tokens
        return self.model.pos_embed.tensor_split([num_prefix], dim=1)


class Call(NamedTuple):
    """What a module was given and what it made of it."""

    input: Tensor
    output: Tensor


def capture_activations(
    modules: Sequence[nn.Module], network: Callable[[Tensor], Any], images: Float[Tensor, "B 3 H W"]
) -> list[Call]:
    """What happens in these modules while the network sees the images: one way into every family's forward."""
    calls: dict[nn.Module, Call] = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output: calls.__setitem__(module, Call(inputs[0], output)))
        for module in set(modules)
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [calls[module] for module in modules]


def key_projection(attention: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer that makes keys, which most families keep in one with queries and values."""
    if attention.qkv is None:
        return attention.k_proj.weight, attention.k_proj.bias
    bias = attention.qkv.bias
    return attention.qkv.weight.chunk(3)[1], None if bias is None else bias.chunk(3)[1]


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    for i, block in enumerate(blocks):
        share = rate * i / max(len(blocks) - 1, 1)
        for name in ("drop_path1", "drop_path2"):
            path = DropPath(share) if share > 0 else nn.Identity()
            setattr(block, name, path.train(block.training))


def resample_positions_dino(
    positions: Float[Tensor, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 N2 D"]:
    """Bicubic, not antialiased, with sampling points scaled by (new + 0.1) / old.

    Source: DINO's interpolate_pos_encoding, where the 0.1 keeps rounding from losing a row, and shifts the points.
    """
    if old_grid == new_grid:
        return positions
    grid = positions.unflatten(1, old_grid).permute(0, 3, 1, 2)
    scale = ((new_grid[0] + 0.1) / old_grid[0], (new_grid[1] + 0.1) / old_grid[1])
    return F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)


def build_vit(config: BackboneConfig, image_size: tuple[int, int]) -> ViT:
    """A randomly initialised backbone whose position embedding fits `image_size` (rows, columns in pixels)."""
    assert config.name is not None  # derived by now
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "img_size": image_size,
    }
    for name in ("patch_size", "embed_dim", "depth", "num_heads", "class_token"):
        if (value := getattr(config, name)) is not None:
            arguments[name] = value
    model = create_timm_vit(config.name, **arguments, drop_path_rate=config.drop_path)
    use_subset_drop_path(model.blocks)
    if not config.final_norm:
        model.norm = nn.Identity()
    return ViT(model, Architecture(config.name, arguments), pos_embed_interpolation=config.pos_embed_interpolation)


def create_timm_vit(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` for vision transformers only, with errors that say what is allowed.

    Raises:
        UserError: an unknown name (the nearest ones are given), not a vision transformer, or a setting it lacks.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(
            architecture, timm.list_models("*vit*") + timm.list_models("*eva*"), n=3, cutoff=0.3
        )
        raise UserError(f"unknown backbone {name!r}; timm has no such model. Nearest: {', '.join(nearest) or 'none'}")
    try:
        model = timm.create_model(name, **arguments)
    except (TypeError, AssertionError) as error:
        raise UserError(
            f"timm cannot build {name!r} with {arguments}: {error}. Only vision transformers are trained here; leave "
            "out the setting that this one does not have, or choose another, e.g. vit_small_patch16_224"
        ) from error
    if not isinstance(model, VisionTransformer | Eva):
        raise UserError(
            f"{name!r} is not a vision transformer but a {type(model).__name__}; choose e.g. vit_small_patch16_224"
        )
    return model
