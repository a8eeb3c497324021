"""The members of a tar file by its headers alone: nothing is unpacked, and contents are passed over."""

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from selfpatch.data.reading.image_file import MAX_BYTES

BLOCK = 512
# Long names and other extended headers of one member: a few kB in practice.
MAX_HEADER_BYTES = 2**20


_MANY_DIGITS = re.compile(rb"\d{300}")
# Records that hold for all members to come, which tarfile copies for each of them.
MAX_GLOBAL_RECORDS = 100


@runtime_checkable
class Readable(Protocol):
    """A file, or what reads like one."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class Member(NamedTuple):
    """A member of a tar file.

    Args:
        name: as stored: it names an image and opens nothing.
        offset: of its content in the file.
        problem: why it is no image that could be read, e.g. a link; "": nothing.
    """

    name: str
    offset: int
    size: int
    problem: str = ""


class DamagedTar(ValueError):  # noqa: N818
    """The headers of a tar file cannot be followed any further: from which offset, and why."""


class _HeadersOnly:
    """What tarfile reads of a file: no more than a header at a time, and never back to where it was before.

    tarfile believes the sizes that headers claim. So a long name or a PAX record of 10 GB would be read into memory,
    and a negative size would lead it round in circles.
    """

    def __init__(self, file: Readable, num_bytes: int):
        self._file, self._num_bytes = file, num_bytes
        self._budget = MAX_HEADER_BYTES

    def start_member(self) -> None:
        self._budget = MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self._budget -= size
        if not 0 <= size <= MAX_HEADER_BYTES or self._budget < 0:
            raise DamagedTar("a header that claims more than 1 MB")
        data = self._file.read(size)
        # Python's own patterns for such records take the square of their digits (before 3.11.10 and 3.12.6).
        if size > BLOCK and _MANY_DIGITS.search(data):
            raise DamagedTar("a header of digits")
        return data

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise DamagedTar("a header that points before the beginning")
        return self._file.seek(min(offset, self._num_bytes))


def scan_tar(file: Readable, num_bytes: int) -> Iterator[Member]:
    """The members that are no folders, in their order.

    Raises:
        DamagedTar: after all members before the place; compressed, cut short or no tar file.
    """
    guarded = _HeadersOnly(file, num_bytes)
    try:
        archive = tarfile.TarFile(fileobj=guarded, errorlevel=0, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        last, archive.members = -1, []
        while True:
            guarded.start_member()
            header = archive.next()
            archive.members = []  # or all of them would be kept
            if header is None:
                break
            if len(archive.pax_headers) > MAX_GLOBAL_RECORDS:
                raise DamagedTar("too many global records")
            if header.offset <= last:
                raise DamagedTar("a header that points back")
            last = header.offset
            if not header.isdir():
                yield Member(header.name, header.offset_data, header.size, _problem(header, num_bytes))
            if header.size < 0 or header.offset_data + header.size > num_bytes:
                raise DamagedTar("a member that ends behind the end of the file")
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError, OSError, EOFError) as error:
        if isinstance(error, DamagedTar):
            raise
        raise DamagedTar(str(error) or type(error).__name__) from error
    _require_end(file, archive.offset, num_bytes)


def _problem(header: tarfile.TarInfo, num_bytes: int) -> str:
    if header.issparse():
        return "a sparse file"
    if header.issym() or header.islnk():
        return "a link"
    if not header.isreg():
        return "no regular file"
    if header.size < 0 or header.offset_data < BLOCK or header.offset_data + header.size > num_bytes:
        return "ends behind the end of the tar file"
    if header.size > MAX_BYTES:
        return "too large for an image"
    return ""


def _require_end(file: Readable, offset: int, num_bytes: int) -> None:
    """What stopped tarfile must be the block of zeros that ends a tar file, or the end of the file."""
    file.seek(min(offset, num_bytes))
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise DamagedTar(f"no header at byte {offset:,}")
    if not block and num_bytes == 0:
        raise DamagedTar("an empty file")
