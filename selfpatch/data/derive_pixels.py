"""The format of pixels that follows from the images of a run, with reasons; and their mean and std per channel.

Headers of a sample decide about channels and depth, the numbers of a smaller one about the range of values.
"""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Real

from selfpatch.config import ImagesConfig
from selfpatch.data.image_files import ImageFiles, evenly_spaced
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.reading.stored import StoredImage, open_header
from selfpatch.errors import UserError

# Headers that are read, as long as that takes no longer than so many seconds; a TIFF is read whole for it.
NUM_HEADERS, HEADER_SECONDS, MIN_HEADERS = 512, 20, 32
# Images whose pixels are read for the range of values, mean and std.
NUM_MEASURED = 64
_THREADS = 8
# Of 16-bit numbers few cameras use all; the largest number of so many bits is white.
_DEPTHS = (10, 12, 14, 16)


def derive_pixels(images: ImageFiles, num_channels: int | None, settings: ImagesConfig) -> dict[str, tuple[Any, str]]:
    """Settings that the images decide, where they are not given: name -> (value, reason); none for 8-bit RGB.

    Args:
        num_channels: as given (backbone.num-channels).

    Raises:
        UserError: the images differ in channels or depth, so that one format cannot be right for all.
    """
    headers = list(_sample_headers(images, settings.pages))
    if not headers:
        return {}  # none can be read; `require_readable` tells why
    all_plain = all(header.is_plain for _, header in headers)
    found: dict[str, tuple[Any, str]] = {}
    sample = f"{len(headers)} of {len(images)} images" if len(headers) < len(images) else f"all {len(images)} images"

    # 1. Channels: gray and color of 8 bits go together, as RGB; all else must agree.
    if num_channels is None and (all_plain or settings.bit_depth == 8):
        num_channels = 3
    if num_channels is None:
        num_channels = _agreed_channels(headers)
        found["backbone.num-channels"] = (num_channels, f"the images have {_kinds(headers)}, by {sample}")
    as_rgb = num_channels == 3 and (all_plain or settings.bit_depth == 8) and settings.value_range is None
    if as_rgb and settings.bit_depth != 16:
        return {}
    _require_channels(headers, num_channels)

    # 2. Depth: all must agree, unless it is given what becomes of them.
    if settings.bit_depth is None:
        _require_one_depth(headers, settings)
        is_deep = any(header.number != "unsigned" or header.num_bits > 8 for _, header in headers)
        bit_depth = 16 if is_deep or settings.value_range is not None else 8
        found["images.bit-depth"] = (bit_depth, f"as the images have, by {sample}")
    else:
        bit_depth = settings.bit_depth

    # 3. The range of values, where the depth does not tell it.
    if settings.value_range is None:
        found |= _value_range([header for _, header in headers], images, num_channels, bit_depth, settings)
    return found


def _sample_headers(images: ImageFiles, pages: str) -> Iterator[tuple[str, StoredImage]]:
    def header(index: int) -> StoredImage | None:
        try:
            return open_header(images.location(index).read_bytes(), pages)._replace(load=_no_load)
        except UnreadableImage:
            return None

    indices = np.random.default_rng(0).permutation(evenly_spaced(len(images), NUM_HEADERS)).tolist()
    stop_at = time.monotonic() + HEADER_SECONDS
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(indices), MIN_HEADERS):
            part = indices[start : start + MIN_HEADERS]
            for index, found in zip(part, pool.map(header, part), strict=True):
                if found is not None:
                    yield images.name(index), found
            if time.monotonic() > stop_at:
                return


def _no_load() -> Real[np.ndarray, "H W C"]:
    raise AssertionError("only the header was read")


def _agreed_channels(headers: list[tuple[str, StoredImage]]) -> int:
    counts = Counter(header.num_colors for _, header in headers)
    if len(counts) > 1:
        shown = "; ".join(
            f"{count} of {channels} ({next(name for name, header in headers if header.num_colors == channels)})"
            for channels, count in counts.most_common(4)
        )
        as_rgb = all(header.num_colors in (1, 3) and header.number == "unsigned" for _, header in headers)
        hint = "read gray and color alike as 8-bit RGB (--images.bit-depth 8), " if as_rgb else ""
        raise UserError(
            f"the images differ in their number of channels: {shown}. A backbone reads one number of channels: "
            f"{hint}leave the others out (--images.exclude PATTERN), or give it (--backbone.num-channels) to train on "
            "images of that number"
        )
    return next(iter(counts))


def _require_channels(headers: list[tuple[str, StoredImage]], num_channels: int) -> None:
    """At least one image must have the channels that are asked for."""
    if not any(num_channels in (header.num_channels, header.num_colors) for _, header in headers):
        raise UserError(
            f"backbone.num-channels is {num_channels}, and the images have {_kinds(headers)}; leave it out, or choose "
            "images of that number"
        )


def _require_one_depth(headers: list[tuple[str, StoredImage]], settings: ImagesConfig) -> None:
    depths = Counter((header.number, max(header.num_bits, 8)) for _, header in headers)
    if len(depths) > 1 and settings.value_range is None:
        shown = "; ".join(
            f"{count} of {depth[1]} bits{'' if depth[0] == 'unsigned' else f' ({depth[0]})'}, "
            f"{next(name for name, header in headers if (header.number, max(header.num_bits, 8)) == depth)} for one"
            for depth, count in depths.most_common(4)
        )
        raise UserError(
            f"the images differ in bit depth: {shown}. Say what becomes of them: --images.bit-depth 8 scales each by "
            "its own depth to 8 bits, 16 likewise and keeps what is there; --images.value-range LOW HIGH is one scale "
            "for all"
        )


def _value_range(
    headers: list[StoredImage], images: ImageFiles, num_channels: int, bit_depth: int, settings: ImagesConfig
) -> dict[str, tuple[Any, str]]:
    """Black and white of floating point and signed numbers, and of 16-bit ones that use fewer bits."""
    numbers = {(header.number, header.num_bits) for header in headers}
    is_known = all(number == "unsigned" and num_bits <= 16 for number, num_bits in numbers)
    if is_known and (bit_depth == 8 or numbers != {("unsigned", 16)}):
        return {}
    # Numbers as they are: in units that a range of 0 to 1 leaves alone, were it not for the clipping at its ends.
    low, high = _extremes(images, num_channels, settings.pages)
    if is_known:
        bits = next(bits for bits in _DEPTHS if high < 2**bits)
        if bits == 16:
            return {}
        reason = f"no value above {2**bits - 1}, as of {bits} bits, in {min(len(images), NUM_MEASURED)} images"
        return {"images.value-range": ((0.0, float(2**bits - 1)), reason)}
    if not low < high:
        low, high = low, low + 1
    reason = f"0.1 to 99.9 % of the values of {min(len(images), NUM_MEASURED)} images"
    return {"images.value-range": ((float(low), float(high)), reason)}


def _extremes(images: ImageFiles, num_channels: int, pages: str) -> tuple[float, float]:
    """Smallest and largest number of a sample; of numbers without a known range, without the outermost 0.1 %."""

    def of_image(index: int) -> tuple[float, float] | None:
        try:
            stored = open_header(images.location(index).read_bytes(), pages)
            values = stored.load()[..., :num_channels]
        except Exception:  # damaged: told when the image is read for training
            return None
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        if stored.number == "unsigned" and stored.num_bits <= 16:
            return float(values.min()), float(values.max())
        low, high = np.percentile(values, (0.1, 99.9))
        return float(low), float(high)

    with ThreadPoolExecutor(_THREADS) as pool:
        found = [pair for pair in pool.map(of_image, evenly_spaced(len(images), NUM_MEASURED)) if pair is not None]
    if not found:
        return 0.0, 1.0
    return min(low for low, _ in found), max(high for _, high in found)


def _kinds(headers: list[tuple[str, StoredImage]]) -> str:
    counts = Counter((header.kind, header.num_channels) for _, header in headers)
    texts = (
        kind if "channels" in kind else f"{number} channel{'' if number == 1 else 's'} ({kind})"
        for kind, number in (kind_and_number for kind_and_number, _ in counts.most_common(3))
    )
    return ", ".join(texts)


class ChannelStatistics:
    """Mean and standard deviation of each channel over images that are added one by one, for values in [0, 1]."""

    def __init__(self) -> None:
        self.num_images = 0
        self._count = 0
        self._sum: np.ndarray = np.zeros(1)
        self._squares: np.ndarray = np.zeros(1)

    def add(self, image: Real[np.ndarray, "H W C"]) -> None:
        values = image.reshape(-1, image.shape[2]).astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
        self.num_images += 1
        self._count += len(values)
        self._sum = self._sum + values.sum(axis=0)
        self._squares = self._squares + (values**2).sum(axis=0)

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(round(float(mean), 6) for mean in self._sum / self._count)

    @property
    def std(self) -> tuple[float, ...]:
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        # A channel that never changes has nothing to divide by.
        return tuple(round(max(float(std), 1e-3), 6) for std in np.sqrt(np.maximum(variance, 0)))


def measure_channels(images: ImageFiles, num_images: int = NUM_MEASURED) -> ChannelStatistics | None:
    """Over images spread evenly over all; None: not one of them can be read."""

    def read(index: int) -> Real[np.ndarray, "H W C"] | None:
        try:
            return images.read(index)
        except UnreadableImage:
            return None

    statistics = ChannelStatistics()
    indices = evenly_spaced(len(images), num_images)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(indices), _THREADS):  # few at a time: decoded images are large
            for image in pool.map(read, indices[start : start + _THREADS]):
                if image is not None:
                    statistics.add(image)
    return statistics if statistics.num_images else None
