"""Images that are files of their own behind URLs: a folder of a bucket, or what a manifest lists."""

import os
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_files import NamedFiles, append_name
from selfpatch.data.image_folder import ENDINGS, chosen_by, left_out_notes, plural
from selfpatch.data.location import Location
from selfpatch.data.reading.image_file import MAX_BYTES, UnreadableImage
from selfpatch.data.remote.remote_file import RemoteFile, filesystem, reason_of, retried
from selfpatch.errors import UserError


class RemoteLocation(NamedTuple):
    """A whole remote file.

    Args:
        size: as the bucket's list says; -1: asked for before it is read, which is one request more.
        version: of its content, a number that the bucket's list gives; 0: none.
    """

    url: str
    size: int = -1
    version: int = 0

    @property
    def path(self) -> Path:
        return Path(self.url)

    def read_bytes(self, limit: int = -1, *, checked: bool = False) -> bytes:
        file = self._file()
        if file.num_bytes > MAX_BYTES:
            raise UnreadableImage(f"{file.num_bytes / 2**30:.1f} GiB, more than any image of allowed size needs")
        return file.read(0, file.num_bytes if limit < 0 else min(limit, file.num_bytes))

    def num_bytes(self) -> int:
        return self._file().num_bytes

    def stamp(self) -> list[int]:
        file = self._file()
        return [file.num_bytes, zlib.crc32(file.version.encode())]

    def _file(self) -> RemoteFile:
        if self.size >= 0:
            return RemoteFile(self.url, self.size, str(self.version))
        try:
            return remote_file(self.url)
        except OSError as error:
            raise UnreadableImage(reason_of(error)) from error


def remote_file(url: str) -> RemoteFile:
    """With its size as the other side says; raises OSError."""

    def ask() -> RemoteFile:
        files, path = filesystem(url)
        found = files.info(path)
        if found.get("type") == "directory" or not isinstance(found.get("size"), int):
            raise FileNotFoundError(path)
        return RemoteFile(url, found["size"], version_of(found))

    return retried(ask)


def version_of(found: dict[str, Any]) -> str:
    """Of fsspec's description of a file: whatever changes with its content."""
    return str(
        next(
            (found[key] for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if found.get(key)),
            "",
        )
    )


def list_files(url: str, *, below: bool) -> dict[str, RemoteFile]:
    """Names as seen from the folder, sorted, with their files.

    Args:
        below: in all folders below, too.

    Raises:
        OSError: it cannot be listed.
    """

    def ask() -> dict[str, Any]:
        files, path = filesystem(url)
        return files.find(path, maxdepth=None if below else 1, detail=True)

    root = filesystem(url)[1].rstrip("/")
    found = {}
    for path, description in retried(ask).items():
        name = str(path)[len(root) :].lstrip("/")
        if name and str(path).startswith(root) and isinstance(description.get("size"), int):
            found[name] = RemoteFile(f"{url}/{name}", description["size"], version_of(description))
    return dict(sorted(found.items(), key=lambda pair: os.fsencode(pair[0])))


class RemoteFolder(NamedFiles):
    """All images below a URL, in the order that `ImageFolder` gives them."""

    are_files = False

    def __init__(
        self,
        url: str,
        found: dict[str, RemoteFile],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        pixels: PixelFormat = RGB_8,
    ):
        is_chosen = chosen_by(include, exclude)
        images = {name: file for name, file in found.items() if name.lower().endswith(ENDINGS) and not _is_hidden(name)}
        chosen = [name for name in images if is_chosen is None or is_chosen(os.fsencode(name))]
        if not chosen:
            raise UserError(
                f"there is no image below {url}: of {plural(len(found), 'file', 'files')}, "
                f"{len(images)} end in {' '.join(ENDINGS)}, and the patterns given leave none"
                if images
                else f"there is no image below {url}, and no shard: {plural(len(found), 'file', 'files')} found"
            )
        chosen.sort(key=_as_in_a_folder)
        names, ends = bytearray(), array("q", [0])
        for name in chosen:
            append_name(names, ends, os.fsencode(name))
        left_out = Counter(os.path.splitext(name)[1].lower()[:8] for name in found if name not in images)
        notes = left_out_notes(left_out, 0)
        if len(chosen) < len(images):
            notes.append(
                f"{plural(len(images) - len(chosen), 'image is', 'images are')} left out by the patterns given"
            )
        super().__init__([Path(url)], names, ends, [0], notes=notes, pixels=pixels)
        self._url = url
        self._sizes = np.array([images[name].num_bytes for name in chosen], np.int64)
        self._versions = np.array([zlib.crc32(images[name].version.encode()) for name in chosen], np.int64)

    def location(self, index: int) -> Location:
        name = os.fsdecode(self.name_bytes(index))
        return RemoteLocation(f"{self._url}/{name}", int(self._sizes[index]), int(self._versions[index]))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _as_in_a_folder(name: str) -> tuple[Any, ...]:
    """Files of a folder before its subfolders, each by the bytes of its name."""
    *folders, last = os.fsencode(name).split(b"/")
    return (*((1, folder) for folder in folders), (0, last))
