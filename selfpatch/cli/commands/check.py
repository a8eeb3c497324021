"""Options of `selfpatch check`."""

from dataclasses import dataclass
from pathlib import Path

from selfpatch.cli.command import Command
from selfpatch.cli.options import Images


@dataclass(frozen=True)
class Check:
    """Read every image once and report what a training run would meet: sizes, channels, damage, duplicates, leaks."""

    images: Images
    # labeled set, of whose images none should be among those to train on; None: none
    labels: Path | None = None
    # file for the list of images that cannot be read, each with the reason; None: no list
    out: Path | None = None
    # file to keep what was found of each image, so that a second call reads what is new or changed; None: kept nowhere
    cache: Path | None = None
    # print all findings as JSON, and nothing else
    json: bool = False
    # patterns of file names to take, such as "site_a/*" or "*_rgb.tif"; none: all
    include: tuple[str, ...] = ()
    # patterns of file names to leave out
    exclude: tuple[str, ...] = ()


COMMAND = Command(
    "read every image of a folder and report what training would meet",
    lambda _: Check,
    "selfpatch.commands.check:check",
)
