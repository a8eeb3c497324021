"""Settings of the images of a run: which files, and what becomes of the values that they store."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.pixel_format import MAX_CHANNELS
from selfpatch.config.ranges import Ascending, Config, Distinct, Finite, Positive, Range


@dataclass(frozen=True)
class ImagesConfig(Config, group="images"):
    """The images: which files of the folder, and the values that they store."""

    # bits per channel that are kept: 8, or 16 for all that the files store (floating point, too); None: as the images
    # have
    bit_depth: Literal[8, 16] | None = None
    # stored values that become black and white, values beyond are clipped; None: 0 and the largest number of the files'
    # depth, for floating point the smallest and largest value of a sample of the images
    value_range: Annotated[tuple[float, float] | None, Finite, Ascending, Distinct] = None
    # pages of a TIFF: the first alone, all as channels, or as the file itself declares its array (auto)
    pages: Literal["auto", "first", "channels"] = "auto"
    # patterns of file names to take, such as "site_a/*" or "*_rgb.tif"; none: all
    include: tuple[str, ...] = ()
    # patterns of file names to leave out
    exclude: tuple[str, ...] = ()
    # images that lie side by side and are read one after the other: such blocks are shuffled, and images among 64 of
    # them, so that shards on a disk or behind a URL are read in long pieces; None: all images are shuffled
    shuffle_block: Annotated[int | None, Positive] = None


ShownChannels = Annotated[tuple[int, int, int] | None, Range(at_least=0, below=MAX_CHANNELS)]
