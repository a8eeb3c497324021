"""Image files are opened before all else: what cannot be read is better known at the start than after hours."""

from collections.abc import Sequence
from pathlib import Path

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.reading.decode import UnreadableImage, read_image, read_size
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import indices_to_decode, listed
from selfpatch.evaluation.features import batches, prefetch
from selfpatch.evaluation.task import ProgressFn

READ_AT_ONCE = 64  # images


def check_readable(
    root: Path, paths: Sequence[Path], report: ProgressFn, *, num_val: int, pixels: PixelFormat = RGB_8
) -> list[tuple[int, int]]:
    """(rows, columns) of every image.

    NUM_DECODED of them are decoded, those for validation first; of the others the header is read.

    Args:
        num_val: the first of the paths, which are for validation.

    Raises:
        UserError: some cannot be read; the first are named, as paths below root.
    """
    decoded = indices_to_decode(num_val, len(paths) - num_val)

    def size_or_reason(i: int) -> tuple[int, int] | str:
        try:
            rows, columns = read_image(paths[i], pixels).shape[:2] if i in decoded else read_size(paths[i], pixels)
        except UnreadableImage as error:
            return f"{paths[i].relative_to(root)} ({error})"
        return rows, columns

    sizes, damaged = [], []
    for batch in prefetch(size_or_reason, batches(range(len(paths)), READ_AT_ONCE)):
        for found in batch:
            damaged.append(found) if isinstance(found, str) else sizes.append(found)
        report(len(sizes) + len(damaged), len(paths))
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(paths)} images in {root} cannot be read: {listed(damaged)}; replace or remove them"
        )
    return sizes
