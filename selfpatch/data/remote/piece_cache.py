"""Pieces of remote files on the local disk: bounded, and shared by all processes of a machine.

A piece is a file that is written beside its place and renamed, so it is whole wherever it is. Whoever reads has it open
while somebody else removes it, or fetches it again.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
import time
from pathlib import Path

from selfpatch.config.cache_folder import cache_folder, cache_limit

# The sum of bytes, and the lock of whoever changes it.
_SUM = ".sum"
# When the bound is passed, what was read longest ago goes, until so much of it is left.
_KEPT_FRACTION = 0.9
# A reading counts for the order of removal once in so many seconds.
_TOUCH_S = 60
# Unfinished files this old are of processes that were killed.
_ABANDONED_S = 3600


class PieceCache:
    """
    Args:
        limit: bytes that are kept; 0: none.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self.limit = folder, limit

    def read(self, key: str, num_bytes: int, offset: int, size: int) -> bytes | None:
        """A part of a piece of `num_bytes`; None: it is not there, or damaged."""
        if not self.limit:
            return None
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size != num_bytes:
                    path.unlink(missing_ok=True)
                    return None
                data = os.pread(file.fileno(), size, offset)
                if time.time() - status.st_mtime > _TOUCH_S:
                    with contextlib.suppress(OSError):
                        os.utime(file.fileno())
        except OSError:
            return None
        return data if len(data) == size else None

    def write(self, key: str, piece: bytes) -> None:
        """Keep a piece if there is room: a cache that cannot be written costs time, nothing else."""
        if not self.limit:
            return
        path = self._path(key)
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            with os.fdopen(descriptor, "wb") as file:
                file.write(piece)
            os.replace(temporary, path)
        except OSError:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return
        with contextlib.suppress(OSError):
            self._count(len(piece))

    def remove(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / digest[:2] / digest[2:40]

    def _count(self, num_bytes: int) -> None:
        """Add to the sum of what all processes wrote, and make room when it passes the limit."""
        descriptor = os.open(self._folder / _SUM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read(32)
            # Files that are written anew or removed make the sum too large; then they are counted.
            total = int(text) + num_bytes if text.isdigit() else self.limit + 1
            if total > self.limit:
                total = self._make_room()
            file.seek(0)
            file.write(b"%032d" % total)

    def _make_room(self) -> int:
        """The bytes that are left."""
        pieces, total = [], 0
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):  # removed by somebody else
                status = path.stat()
                if path.name.startswith("."):
                    if time.time() - status.st_mtime > _ABANDONED_S:
                        path.unlink()
                    continue
                pieces.append((status.st_mtime, status.st_size, path))
                total += status.st_size
        if total <= self.limit:
            return total
        for _, size, path in sorted(pieces):
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
            if total <= self.limit * _KEPT_FRACTION:
                break
        return total


def piece_cache() -> PieceCache:
    """The cache that the environment names."""
    return _cache_of(cache_folder() / "remote", cache_limit())


@functools.cache
def _cache_of(folder: Path, limit: int) -> PieceCache:
    return PieceCache(folder, limit)
