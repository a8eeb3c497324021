"""Options of `selfpatch embed`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.cli.command import Command
from selfpatch.cli.options import Device, Images, Mean, Model, Network, NumChannels, NumHeads, Out, Std
from selfpatch.config.ranges import Config, Positive


@dataclass(frozen=True)
class Embed(Config):
    """Write the features of every image: one vector per image, or one vector per patch."""

    model: Model
    images: Images
    out: Out
    # features to write: "image" gives embeddings.npy, one row per image of files.txt; "patch" gives one file
    # patches/NAME.npy per image, of rows x columns x width
    level: Literal["image", "patch"] = "image"
    # files to write: "npy", .npy as above; "zarr", one array of all tokens; "parquet", tables with one row per token;
    # "safetensors", files with one tensor per image. All but embeddings.npy have an index and go on where they were cut
    format: Literal["npy", "zarr", "parquet", "safetensors"] = "npy"
    # short side of the images in pixels as the model gets them; None: the size the model was built for
    image_size: Annotated[int | None, Positive] = None
    # data type of the numbers in the files
    dtype: Literal["float16", "float32"] = "float16"
    num_heads: NumHeads = None
    network: Network = None
    num_channels: NumChannels = None
    mean: Mean = None
    std: Std = None
    device: Device = "auto"


COMMAND = Command(
    "write the features of images, or of their patches", lambda _: Embed, "selfpatch.commands.embed:embed"
)
