"""Options of `selfpatch shard`."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.cli.command import Command
from selfpatch.cli.options import Images, Out
from selfpatch.config.ranges import Config, Positive


@dataclass(frozen=True)
class Shard(Config):
    """Copy images into tar files of WebDataset's layout with an index. The same command again goes on after a stop.

    OUT is given to other commands in the place of the folder of images; its images have the same names, order and
    bytes.
    """

    images: Images
    out: Out
    # largest size of a tar file in MB, of 1,000,000 bytes; a larger image has one of its own
    max_size: Annotated[int, Positive] = 1000
    # patterns of file names to take, such as "site_a/*" or "*_rgb.tif"; none: all
    include: tuple[str, ...] = ()
    # patterns of file names to leave out
    exclude: tuple[str, ...] = ()


COMMAND = Command("copy images into tar shards with an index", lambda _: Shard, "selfpatch.commands.shard:shard")
