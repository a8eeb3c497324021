"""Locations of images' bytes: a file, a range of an archive, a cell of a table."""

import os
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from selfpatch.data.reading.image_file import read_bytes


@runtime_checkable
class Location(Protocol):
    """Small enough to be sent to another process, one per image."""

    @property
    def path(self) -> Path:
        """A path that no other image has: the file, or archive and member as if it were a folder."""
        ...

    def read_bytes(self, limit: int = -1, *, checked: bool = False) -> bytes:
        """All bytes of the image file, or the first `limit`; raises UnreadableImage.

        Args:
            checked: compare a checksum, if one is known, also where that is left out to save time.
        """
        ...

    def num_bytes(self) -> int:
        """Without reading the content; raises OSError or UnreadableImage."""
        ...

    def stamp(self) -> list[int]:
        """Numbers that change when the content does, without reading it; raises OSError or UnreadableImage."""
        ...


class FileLocation(NamedTuple):
    """A file of its own."""

    path: Path

    def read_bytes(self, limit: int = -1, *, checked: bool = False) -> bytes:
        return read_bytes(self.path, limit)

    def num_bytes(self) -> int:
        return os.stat(self.path).st_size

    def stamp(self) -> list[int]:
        status = os.stat(self.path)
        return [status.st_size, status.st_mtime_ns]
