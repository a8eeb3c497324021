"""Files of equal content under other names or in other folders: what leaks from a labeled set into pretraining."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 32  # each waits for the disk


def same_content(wanted: Sequence[Path], others: Iterable[Path]) -> dict[Path, Path]:
    """Which of `wanted` has a file of the same bytes among `others`, and that file; unreadable files have none.

    Sizes are compared first, so that of `others` few are read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        by_size: dict[int, list[Path]] = {}
        for path, size in zip(wanted, pool.map(_size, wanted), strict=True):
            if size > 0:
                by_size.setdefault(size, []).append(path)
        listed = list(others)
        candidates = [
            path for path, size in zip(listed, pool.map(_size, listed, chunksize=256), strict=True) if size in by_size
        ]
        first_of: dict[bytes, Path] = {}
        for path, digest in zip(candidates, pool.map(_digest, candidates), strict=True):
            first_of.setdefault(digest, path)
        first_of.pop(b"", None)
        sized = [path for paths in by_size.values() for path in paths]
        digests = pool.map(_digest, sized) if first_of else []
        return {path: first_of[digest] for path, digest in zip(sized, digests, strict=False) if digest in first_of}


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""
