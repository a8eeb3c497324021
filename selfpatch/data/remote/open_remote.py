"""Finds what a URL means: a folder with an index of shards, tar files, a manifest, or a folder of images."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selfpatch.config import RGB_8, ImagesConfig, PixelFormat
from selfpatch.config.cache_folder import FOLDER, cache_folder
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.data.remote.remote_file import PIECE_BYTES, RemoteFile, fetch, reason_of
from selfpatch.data.remote.remote_images import RemoteFolder, list_files, remote_file
from selfpatch.data.remote.urls import require_allowed
from selfpatch.data.shards.image_shards import ImageShards
from selfpatch.data.shards.open_shards import TAR, scanned
from selfpatch.data.shards.shard_index import (
    INDEX,
    MAX_JSON_BYTES,
    IndexHeader,
    ShardIndex,
    is_index,
    parse_header,
    read_index,
    sha256_of,
)
from selfpatch.errors import UserError


def open_remote(url: str, settings: ImagesConfig, pixels: PixelFormat = RGB_8) -> ImageFiles:
    """The images behind a URL that is no manifest.

    Raises:
        UserError: it cannot be reached, has no image, or is a URL that is not read.
    """
    url = require_allowed(url)
    patterns: dict[str, tuple[str, ...]] = {"include": settings.include, "exclude": settings.exclude}
    with cannot_be_read(url):
        if url.lower().endswith(TAR):
            tars = [remote_file(url)]
            return ImageShards(scanned(tars), tars, url, **patterns, pixels=pixels)
        # 1. An index, which takes no listing: plain HTTP has none.
        with contextlib.suppress(FileNotFoundError):
            index = _fetch_index(url)
            files = [RemoteFile(f"{url}/{shard.file}", shard.num_bytes) for shard in index.shards]
            return ImageShards(index, files, url, **patterns, pixels=pixels)
        # 2. Tar files side by side, or images.
        found = list_files(url, below=False)
        if tars := [file for name, file in found.items() if name.lower().endswith(TAR)]:
            return ImageShards(scanned(tars), tars, url, **patterns, pixels=pixels)
        return RemoteFolder(url, list_files(url, below=True), **patterns, pixels=pixels)


@contextlib.contextmanager
def cannot_be_read(url: str) -> Iterator[None]:
    """
    Raises:
        UserError: in place of an error of the other side.
    """
    try:
        yield
    except (OSError, UnreadableImage) as error:
        reason = str(error) if isinstance(error, UnreadableImage) else reason_of(error)
        raise UserError(
            f"{url} cannot be read: {reason}; see that it is there, that the network reaches it and that credentials "
            "are in the environment"
        ) from None


def fetch_file(url: str, limit: int) -> bytes:
    """A small file, whole; raises OSError, FileNotFoundError if there is none, or UnreadableImage."""
    try:
        num_bytes = remote_file(url).num_bytes
    except OSError as error:
        if reason_of(error) == "No such file":
            raise FileNotFoundError(url) from None
        raise
    if num_bytes > limit:
        raise UserError(f"{url} has {num_bytes:,} bytes, more than the {limit:,} that are read")
    return fetch(url, 0, num_bytes) if num_bytes else b""


def _fetch_index(url: str) -> ShardIndex:
    """The index behind a URL, by a copy in the cache folder, which all processes of a machine map."""
    content = fetch_file(f"{url}/{INDEX}", MAX_JSON_BYTES)
    header = parse_header(content, f"{url}/{INDEX}")
    folder = cache_folder() / "indexes" / hashlib.sha256(content).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(f"{folder}.lock", "w") as lock:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if is_index(folder):
                with contextlib.suppress(UserError):  # damaged: fetched again
                    return read_index(folder, url, header)
                shutil.rmtree(folder)
            _copy_index(url, content, header, folder)
    except OSError as error:
        raise UserError(
            f"the index of {url} needs a place on the disk, and {cache_folder()} cannot be written to "
            f"({error.strerror or error}); name another folder in {FOLDER}"
        ) from error
    return read_index(folder, url, header)


def _copy_index(url: str, content: bytes, header: IndexHeader, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        (temporary / "index").mkdir()
        for name, (num_bytes, sha256) in header.files.items():
            path = temporary / "index" / f"{name}.npy"
            with path.open("wb") as file:
                for start in range(0, num_bytes, PIECE_BYTES):
                    file.write(fetch(f"{url}/index/{name}.npy", start, min(PIECE_BYTES, num_bytes - start)))
            if sha256_of(path) != sha256:
                raise UserError(
                    f"{url}/index/{name}.npy has another checksum than index.json says: copy the index anew"
                )
        (temporary / INDEX).write_bytes(content)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
