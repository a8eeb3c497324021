"""Settings of the network: the backbone, and the aggregator on top of its patch tokens."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.config.ranges import Config, DropProbability, Positive, Range


@dataclass(frozen=True)
class BackboneConfig(Config, group="backbone"):
    """The vision transformer to train: a timm model name, and changes to that model."""

    # name of a timm vision transformer, without tag; None: that of the weights the run starts from (--init-from), with
    # all that makes their network, else derived from the hardware
    name: str | None = "vit_small_patch16_224"
    # side of a patch in pixels; None: that of the named model
    patch_size: Annotated[int | None, Positive] = None
    # width of the tokens; None: that of the named model
    embed_dim: Annotated[int | None, Positive] = None
    # number of transformer blocks; None: that of the named model
    depth: Annotated[int | None, Positive] = None
    # number of attention heads per block; None: that of the named model
    num_heads: Annotated[int | None, Positive] = None
    # use a class token; None: as the named model does
    class_token: bool | None = None
    # image token where no aggregator makes one: the class token, or the mean of the patch tokens; None: the class
    # token, and of a Swin transformer, which has none, the mean
    image_token: Literal["class_token", "mean"] | None = None
    # end the backbone in a norm of its own; SelfPatch's code leaves the final norm to the aggregator; None: as the
    # weights the run starts from
    final_norm: bool | None = True
    # size in pixels, a number or rows and columns, of images that have a position for each patch, and windows that
    # fit; others are interpolated; None: the global crops
    image_size: Annotated[int | tuple[int, int] | None, Positive] = None
    # epsilon of the layer norms; None: that of the named model
    norm_eps: Annotated[float | None, Positive] = None
    # further arguments of timm's model as name=value, e.g. reg_tokens=4
    model_kwargs: tuple[str, ...] = ()
    # stochastic depth rate of the student, in [0, 1)
    drop_path: Annotated[float, DropProbability] = 0.1
    # interpolation of position embeddings to other image sizes: "antialias" as timm, "offset" as DINO's code
    pos_embed_interpolation: Literal["antialias", "offset"] = "antialias"
    # number of channels that the first layer reads; None: that of the images
    num_channels: Annotated[int | None, Range(at_least=1, at_most=MAX_CHANNELS)] = None


@dataclass(frozen=True)
class AggregatorConfig(Config, group="aggregator"):
    """Class-attention blocks that summarize a set of patch tokens in one token."""

    # number of class-attention blocks
    num_blocks: Annotated[int, Positive] = 2
    # number of attention heads per class-attention block; None: that of the backbone
    num_heads: Annotated[int | None, Positive] = None
    # width of the MLP in a class-attention block, as a multiple of the backbone's width
    mlp_ratio: Annotated[float, Positive] = 4.0
    # source of the image token: the aggregator over all patches (as SelfPatch's code), or the backbone's class token
    # (or what backbone.image-token says); None: the class token, and no aggregator, where the backbone has one and no
    # objective needs an aggregator
    image_token: Literal["aggregator", "class_token"] | None = "aggregator"
