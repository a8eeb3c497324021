"""A member of a shard: a range of bytes of a file or of a remote object."""

import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from selfpatch.data.local_ranges import OPEN_FILES
from selfpatch.data.reading.image_file import MAX_BYTES, UnreadableImage
from selfpatch.data.remote.remote_file import RemoteFile

# Of a member whose checksum nobody knows.
NO_CHECKSUM = 0
# Images of a local shard that each process compares with their checksums.
CHECKED_PER_SHARD = 8
_NUM_CHECKED: Counter[str] = Counter()


class ByteRange(NamedTuple):
    """
    Args:
        file: the archive: a path, or an object behind a URL.
        crc32: of the whole range, as zlib has it; NO_CHECKSUM: not known.
    """

    file: str | RemoteFile
    name: str
    offset: int
    size: int
    crc32: int = NO_CHECKSUM

    @property
    def path(self) -> Path:
        return Path(self.file.url if isinstance(self.file, RemoteFile) else self.file) / self.name

    def read_bytes(self, limit: int = -1, *, checked: bool = False) -> bytes:
        if self.size > MAX_BYTES:
            raise UnreadableImage(f"{self.size / 2**30:.1f} GiB, more than any image of allowed size needs")
        size = self.size if limit < 0 else min(limit, self.size)
        data = self._read(size)
        if size < self.size or not (checked or self._is_to_be_checked()):
            return data
        if isinstance(self.file, RemoteFile) and not self._is_right(data):
            self.file.forget(self.offset, size)  # what the cache has may be damaged, or of an object that was replaced
            data = self._read(size)
        if not self._is_right(data):
            raise UnreadableImage("its checksum is another one than in the index: the shard is damaged, or another one")
        return data

    def num_bytes(self) -> int:
        return self.size

    def stamp(self) -> list[int]:
        return [self.size, self.crc32]

    def _read(self, size: int) -> bytes:
        if isinstance(self.file, RemoteFile):
            data = self.file.read(self.offset, size)
        else:
            data = OPEN_FILES.read(self.file, self.offset, size)
        if len(data) < size:
            raise UnreadableImage(f"truncated: the shard ends {size - len(data):,} bytes too early")
        return data

    def _is_to_be_checked(self) -> bool:
        """All that came over a network; of a shard on a disk the first few, which tell whether it is the right one.

        A checksum takes longer than the reading, and for files in a folder there is none, either.
        """
        if isinstance(self.file, RemoteFile):
            return True
        _NUM_CHECKED[self.file] += 1
        return _NUM_CHECKED[self.file] <= CHECKED_PER_SHARD

    def _is_right(self, data: bytes) -> bool:
        return self.crc32 == NO_CHECKSUM or zlib.crc32(data) == self.crc32
