"""Options of `selfpatch predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command
from selfpatch.cli.options import Device, Images, Out


@dataclass(frozen=True)
class Predict:
    """Segment images by a head that an evaluation trained: a mask and an overlay per image, and the list of classes."""

    model: Annotated[
        Positional[Path], arg(metavar="MODEL", help="the folder of an evaluation with --keep-head, or OUT/model in it")
    ]
    images: Images
    out: Out
    # write overlays: the images with their classes in color
    overlays: bool = True
    device: Device = "auto"


COMMAND = Command(
    "segment images by a head that evaluate kept", lambda _: Predict, "selfpatch.commands.predict:predict"
)
