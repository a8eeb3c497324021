"""Options of `selfpatch check`."""

from dataclasses import dataclass
from pathlib import Path

from selfpatch.cli.command import Command
from selfpatch.cli.options import Images


@dataclass(frozen=True)
class Check:
    """Read every image once and report what a training run would meet: sizes, channels, damaged files, duplicates."""

    images: Images
    # file for the list of images that cannot be read, each with the reason; None: no list
    out: Path | None = None


COMMAND = Command(
    "read every image of a folder and report what training would meet",
    lambda _: Check,
    "selfpatch.commands.check:check",
)
