"""Pixels in memory: how many channels, of which depth, and what stored values become."""

from typing import Any, Literal, NamedTuple

# A first layer takes so many; files of more are no images but cubes.
MAX_CHANNELS = 32


class PixelFormat(NamedTuple):
    """Pixels in memory, the same for all images of a run and for whatever reads images for its backbone.

    Args:
        dtype: "uint8", levels from 0 to 255; "float32", values from 0 to 1 at the full depth of the files.
        value_range: stored values that become 0 and 1; those beyond are clipped. None: 0 and the largest number of the
            file's own depth (4095 of 12 bits).
        pages: of a TIFF: "first", "channels", or "auto": the array that the file says it holds, else the first page.
        shown_channels: those that pictures show as red, green and blue, from 0; None: the first three.
    """

    num_channels: int = 3
    dtype: Literal["uint8", "float32"] = "uint8"
    value_range: tuple[float, float] | None = None
    pages: str = "auto"
    shown_channels: tuple[int, int, int] | None = None

    @property
    def is_rgb(self) -> bool:
        """True if hue, saturation and gray mean something."""
        return self.num_channels == 3

    @property
    def is_8_bit_rgb(self) -> bool:
        return self.is_rgb and self.dtype == "uint8"

    def __str__(self) -> str:
        if self.is_8_bit_rgb:
            return "8-bit RGB"
        channels = "1 channel" if self.num_channels == 1 else f"{self.num_channels} channels"
        return f"{channels} of {'8 bits' if self.dtype == 'uint8' else 'full depth'}"


RGB_8 = PixelFormat()


def pixel_format(config: Any) -> PixelFormat:
    """Of a `PretrainConfig` whose images are known by now; all at None is 8-bit RGB."""
    return PixelFormat(
        num_channels=config.backbone.num_channels or 3,
        dtype="float32" if config.images.bit_depth == 16 else "uint8",
        value_range=config.images.value_range,
        pages=config.images.pages,
        shown_channels=config.evaluate.shown_channels,
    )
