"""Options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

FLAT = arg(name="")  # a group of settings whose flags carry no prefix

Model = Annotated[
    Positional[str],
    arg(metavar="MODEL", help="a run folder, an exported file, an original checkpoint, or timm:NAME"),
]
Images = Annotated[
    Positional[Path], arg(metavar="IMAGES", help="the folder of images, searched with all its subfolders")
]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="the folder to write to")]
NumHeads = Annotated[
    int | None,
    arg(help="number of attention heads of an original checkpoint of unusual width; None: known from the width"),
]
Device = Annotated[
    str,
    arg(help='torch device: cpu, cuda, cuda:1, mps; "auto": the GPU if there is one, else the CPU'),
]
