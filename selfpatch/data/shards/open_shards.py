"""Finds the shards that a path means: a folder with an index, a folder of tar files, or one tar file."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfpatch.config import RGB_8, ImagesConfig, PixelFormat
from selfpatch.config.cache_folder import cache_folder
from selfpatch.data.image_folder import ENDINGS, left_out_notes, plural
from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.data.remote.remote_file import RemoteFile
from selfpatch.data.shards.byte_range import NO_CHECKSUM
from selfpatch.data.shards.image_shards import ImageShards
from selfpatch.data.shards.shard_index import (
    UNFINISHED,
    IndexBuilder,
    Shard,
    ShardIndex,
    is_index,
    read_index,
    write_index,
)
from selfpatch.data.shards.tar_headers import DamagedTar, scan_tar
from selfpatch.errors import UserError

TAR = ".tar"


def open_shards(path: Path, settings: ImagesConfig, pixels: PixelFormat = RGB_8) -> ImageShards | None:
    """The images of a folder of shards or of a tar file; None: it is neither.

    Raises:
        UserError: shards that are missing, damaged, without an image, or beside images that are in none.
    """
    if (path / UNFINISHED).is_dir():
        raise UserError(f"the shards in {path} are not finished: give the command that writes them (shard) again")
    if path.is_dir() and is_index(path):
        index = read_index(path)
        _require_shards(path, index.shards)
        files = [str(path / shard.file) for shard in index.shards]
    elif tars := _tars(path):
        index = scanned(tars)
        files = [str(tar) for tar in tars]
    else:
        return None
    return ImageShards(index, files, str(path), include=settings.include, exclude=settings.exclude, pixels=pixels)


def _require_shards(folder: Path, shards: Sequence[Shard]) -> None:
    missing, other = [], []
    for shard in shards:
        try:
            num_bytes = os.stat(folder / shard.file).st_size
        except OSError:
            missing.append(shard.file)
            continue
        if num_bytes != shard.num_bytes:
            other.append(f"{shard.file} has {num_bytes:,} bytes instead of {shard.num_bytes:,}")
    if missing:
        raise UserError(
            f"{len(missing):,} of the {len(shards):,} shards that the index of {folder} lists are not there: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; copy the whole folder"
        )
    if other:
        raise UserError(
            f"the index of {folder} is of other shards: {other[0]}; copy shards and index together, or remove "
            "index.json, and the tar files are indexed by their headers"
        )


def _tars(path: Path) -> list[Path]:
    if path.suffix.lower() == TAR and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    tars, images = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = entry.name.lower()
            if name.endswith(TAR) and entry.is_file():
                tars.append(path / entry.name)
            elif name.endswith(ENDINGS):
                images.append(entry.name)
    if tars and images:
        raise UserError(
            f"{path} holds {plural(len(tars), 'tar file', 'tar files')} and {plural(len(images), 'image', 'images')} "
            f"({min(images)}, say) side by side; which are meant? Put them in folders of their own"
        )
    return sorted(tars, key=os.fsencode)


def scanned(tars: Sequence[Path] | Sequence[RemoteFile]) -> ShardIndex:
    """The index of tar files without one, from their headers; kept in the cache folder, if that can be written to."""
    state = [_state(tar) for tar in tars]
    key = hashlib.sha256(json.dumps(state).encode("utf-8", "backslashreplace")).hexdigest()
    folder = cache_folder() / "indexes" / key[:32]
    with _locked(folder) as may_write:
        if is_index(folder):
            with contextlib.suppress(UserError):  # damaged: made again
                return read_index(folder)
        index = _scan(tars)
        if may_write:
            with contextlib.suppress(OSError):
                write_index(index, folder)
    return index


def _state(tar: Path | RemoteFile) -> list[Any]:
    """Changes when the file does."""
    if isinstance(tar, RemoteFile):
        return list(tar)
    status = os.stat(tar)
    return [str(tar.absolute()), status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """So that of many processes one makes the index and the others wait for it; False: nothing can be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(f"{folder}.lock", "w")  # noqa: SIM115
    except OSError:
        yield False
        return
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks: each makes its own
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


class _RemoteReader(io.RawIOBase):
    """A remote file as tarfile reads it, through the cache."""

    def __init__(self, file: RemoteFile):
        self._file, self._position = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position


def _scan(tars: Sequence[Path] | Sequence[RemoteFile]) -> ShardIndex:
    builder, shards = IndexBuilder(), []
    left_out: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    damaged: list[str] = []
    names: set[bytes] = set()
    for tar in tars:
        shown = tar.url.rpartition("/")[2] if isinstance(tar, RemoteFile) else tar.name
        num_bytes = tar.num_bytes if isinstance(tar, RemoteFile) else os.stat(tar).st_size
        num_before = len(builder)
        in_tar: set[bytes] = set()
        try:
            with _RemoteReader(tar) if isinstance(tar, RemoteFile) else tar.open("rb") as file:
                for member in scan_tar(file, num_bytes):
                    name = os.fsencode(member.name).replace(b"\0", b"")
                    if not name.lower().endswith(tuple(ending.encode() for ending in ENDINGS)):
                        left_out[os.path.splitext(member.name)[1].lower()[:8]] += 1
                    elif member.problem or name in in_tar:
                        problems[member.problem or "a second member of its name"] += 1
                    else:
                        in_tar.add(name)
                        builder.add(name, member.offset, member.size, NO_CHECKSUM)
        except (DamagedTar, OSError, UnreadableImage) as error:
            damaged.append(f"{shown}: {error}"[:200])
        shards.append(Shard(shown, num_bytes, len(builder) - num_before))
        names |= in_tar
    if not len(builder):
        seen = "; ".join([*damaged[:3], *left_out_notes(left_out, 0)]) or "they are empty"
        raise UserError(
            f"there is no image in {', '.join(map(_shown, tars[:3]))}{', ...' if len(tars) > 3 else ''}: looked for "
            f"names that end in {' '.join(ENDINGS)}; {seen}"
        )
    notes = left_out_notes(left_out, 0)
    notes += [f"{plural(n, 'image is', 'images are')} left out: {problem}" for problem, n in problems.most_common(8)]
    if damaged:
        more = f" (and {len(damaged) - 3} more)" if len(damaged) > 3 else ""
        notes.append(f"of damaged tar files only what stands before the damage is read: {'; '.join(damaged[:3])}{more}")
    index = builder.build(shards, notes)
    return index if len(names) == len(builder) else _named_by_shard(index)


def _shown(tar: Path | RemoteFile) -> str:
    return tar.url if isinstance(tar, RemoteFile) else str(tar)


def _named_by_shard(index: ShardIndex) -> ShardIndex:
    """Of tar files that use the same names: each name below that of its file."""
    builder = IndexBuilder()
    position = 0
    for shard in index.shards:
        for i in range(position, position + shard.num_images):
            name = bytes(index.names[index.ends[i] : index.ends[i + 1] - 1])
            builder.add(os.fsencode(shard.file) + b"/" + name, *index.members[i].item())
        position += shard.num_images
    return builder.build(index.shards, index.notes)
