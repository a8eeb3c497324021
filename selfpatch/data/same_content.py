"""Files of equal content under other names or in other folders: what leaks from a labeled set into pretraining."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from selfpatch.data.image_files import ImageFiles
from selfpatch.data.location import FileLocation, Location
from selfpatch.data.reading.image_file import UnreadableImage

_THREADS = 32  # each waits for the disk


def same_content(wanted: Sequence[Path], images: ImageFiles) -> dict[Path, int]:
    """Find those of `wanted` with the same bytes as an image, and that image's index; unreadable files have none.

    Sizes are compared first, so that of the images few are read.
    """
    own = [FileLocation(path) for path in wanted]
    with ThreadPoolExecutor(_THREADS) as pool:
        by_size: dict[int, list[FileLocation]] = {}
        for location, size in zip(own, pool.map(_size, own), strict=True):
            if size > 0:
                by_size.setdefault(size, []).append(location)

        def has_wanted_size(index: int) -> bool:
            return _size(images.location(index)) in by_size

        is_candidate = pool.map(has_wanted_size, range(len(images)), chunksize=256)
        candidates = [index for index, is_one in enumerate(is_candidate) if is_one]
        first_of: dict[bytes, int] = {}
        digests = pool.map(lambda index: _digest(images.location(index)), candidates)
        for index, digest in zip(candidates, digests, strict=True):
            first_of.setdefault(digest, index)
        first_of.pop(b"", None)
        sized = [location for locations in by_size.values() for location in locations]
        digests = pool.map(_digest, sized) if first_of else []
        pairs = zip(sized, digests, strict=False)
        return {location.path: first_of[digest] for location, digest in pairs if digest in first_of}


def _size(location: Location) -> int:
    try:
        return location.num_bytes()
    except (OSError, UnreadableImage):
        return -1


def _digest(location: Location) -> bytes:
    try:
        return hashlib.sha256(location.read_bytes()).digest()
    except (OSError, UnreadableImage):
        return b""
