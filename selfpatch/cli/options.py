"""Options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.config.ranges import Range

FLAT = arg(name="")  # a group of settings whose flags carry no prefix

Model = Annotated[
    Positional[str],
    arg(
        metavar="MODEL",
        help="a run folder, a checkpoint of it (RUN@best, RUN@last, RUN@step-400), an exported file, a checkpoint or "
        "folder of another program, or timm:NAME",
    ),
]
Images = Annotated[
    Positional[str],  # a path would lose a slash of a URL
    arg(
        metavar="IMAGES",
        help="the folder of images, searched with all its subfolders; a manifest (.csv, .jsonl, .parquet, .txt); tar "
        "shards, with or without an index; a Hugging Face dataset (save_to_disk, Parquet); or a URL of one of these",
    ),
]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="the folder to write to")]
NumHeads = Annotated[
    int | None,
    arg(help="number of attention heads of an original checkpoint of unusual width; None: known from the width"),
]
Network = Annotated[
    str | None,
    arg(help="prefix of the network to read from a checkpoint of several; None: the one that its authors evaluate"),
]
NumChannels = Annotated[
    int | None,
    Range(at_least=1, at_most=MAX_CHANNELS),
    arg(
        help="number of channels of the images, for timm:NAME, whose first layer for RGB is then adapted to them and "
        "reads their full depth; None: as the model has"
    ),
]
Mean = Annotated[
    tuple[float, ...] | None,
    arg(help="normalization mean of the model's images, values in [0, 1]; None: as its file, name or config.json says"),
]
Std = Annotated[
    tuple[float, ...] | None,
    arg(help="normalization standard deviation of the model's images; given together with --mean"),
]
Device = Annotated[
    str,
    arg(help='torch device: cpu, cuda, cuda:1, mps; "auto": the GPU if there is one, else the CPU'),
]
