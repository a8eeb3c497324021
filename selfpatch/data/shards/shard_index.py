"""The index of a set of shards: which image lies where. Mapped into memory, so processes of a machine share it.

index.json          the shards with their sizes and numbers of images; sizes and checksums of the files below
index/members.npy   per image: offset, size and CRC-32 of its content, 16 bytes
index/ends.npy      where its name ends in names.npy, 8 bytes; a zero before the first
index/names.npy     names as bytes, each followed by a zero
"""

import hashlib
import json
import os
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from selfpatch.data.reading.image_file import MAX_BYTES
from selfpatch.data.shards.tar_headers import BLOCK
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write, fsync

INDEX = "index.json"
# A folder for what is known of finished shards, until all are there.
UNFINISHED = ".unfinished"
FORMAT, VERSION = "selfpatch:shards", 1
MEMBER = np.dtype([("offset", "<i8"), ("size", "<u4"), ("crc32", "<u4")])
DTYPES = {"members": MEMBER, "ends": np.dtype("<i8"), "names": np.dtype("u1")}
# Of index.json: a hundred bytes per shard.
MAX_JSON_BYTES = 200 * 2**20
# Images at a time that are compared with what they claim.
_AT_ONCE = 2**20


class Shard(NamedTuple):
    """A tar file of the set, named as seen from the folder of index.json."""

    file: str
    num_bytes: int
    num_images: int


class ShardIndex(NamedTuple):
    """
    Args:
        names, ends: as `NamedFiles` holds them.
        notes: sentences on what the shards hold besides, or lack.
    """

    shards: list[Shard]
    members: np.ndarray  # [images] of MEMBER
    ends: Int64[np.ndarray, "_ends"]
    names: UInt8[np.ndarray, "_bytes"]
    notes: list[str]

    @property
    def first_of_shard(self) -> Int64[np.ndarray, "_shards"]:
        return np.cumsum([0, *(shard.num_images for shard in self.shards)], dtype=np.int64)[:-1]


class IndexBuilder:
    """Gathers images in their order, 24 bytes and a name each."""

    def __init__(self) -> None:
        self.offsets, self.sizes, self.checksums = array("q"), array("I"), array("I")
        self.ends, self.names = array("q", [0]), bytearray()

    def add(self, name: bytes, offset: int, size: int, crc32: int) -> None:
        self.offsets.append(offset)
        self.sizes.append(size)
        self.checksums.append(crc32)
        self.names += name + b"\0"
        self.ends.append(len(self.names))

    def __len__(self) -> int:
        return len(self.offsets)

    def build(self, shards: list[Shard], notes: list[str]) -> ShardIndex:
        members = np.empty(len(self), MEMBER)
        for field, values in (("offset", self.offsets), ("size", self.sizes), ("crc32", self.checksums)):
            members[field] = values
        return ShardIndex(
            shards, members, np.array(self.ends, np.int64), np.frombuffer(bytes(self.names), np.uint8), notes
        )


def write_index(index: ShardIndex, folder: Path, source: dict[str, Any] | None = None) -> None:
    """Write the files to a folder; index.json, which names the others and the source, comes last."""
    (folder / "index").mkdir(parents=True, exist_ok=True)
    files = {}
    for name in DTYPES:
        path = folder / "index" / f"{name}.npy"
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, getattr(index, name))
        files[name] = {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    fsync(folder / "index")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "num_images": len(index.members),
        "files": files,
        "notes": index.notes,
        "source": source or {},
        "shards": [shard._asdict() for shard in index.shards],
    }
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8", errors="backslashreplace")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class IndexHeader(NamedTuple):
    """index.json, checked."""

    num_images: int
    shards: list[Shard]
    notes: list[str]
    files: dict[str, tuple[int, str]]  # name -> size and SHA-256


def is_index(folder: Path) -> bool:
    """True if there is an index.json that says to be of this format."""
    try:
        with (folder / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def parse_header(content: bytes, shown: str) -> IndexHeader:
    """
    Raises:
        UserError: it is no index of shards, or of a later version; `shown` names the file.
    """
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {str(values['format'])[:40]!r}")
        if values["version"] != VERSION:
            raise UserError(f"{shown} is of version {str(values['version'])[:20]}; this selfpatch reads {VERSION}")
        shards = [Shard(_name(s["file"]), _count(s["num_bytes"]), _count(s["num_images"])) for s in values["shards"]]
        files = {
            name: (_count(values["files"][name]["num_bytes"]), str(values["files"][name]["sha256"])) for name in DTYPES
        }
        notes = [str(note)[:500] for note in values["notes"][:20]]
        num_images = _count(values["num_images"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise UserError(
            f"{shown} is no index of shards ({reason}); write it again: selfpatch shard IMAGES OUT"
        ) from error
    if sum(shard.num_images for shard in shards) != num_images or num_images == 0:
        raise UserError(f"{shown} lists {num_images} images, and its shards hold others; write it again")
    return IndexHeader(num_images, shards, notes, files)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value or value in (".", "..") or "/" in value or "\0" in value:
        raise ValueError(f"{str(value)[:40]!r} names no file beside it")
    return value


def read_index(folder: Path, shown: str = "", header: IndexHeader | None = None) -> ShardIndex:
    """The index in a folder, compared with itself: every image lies within its shard.

    Args:
        shown: what messages call the folder.

    Raises:
        UserError: it is damaged, or not there.
    """
    shown = shown or str(folder)
    if header is None:
        path = folder / INDEX
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{shown}/{INDEX} has {path.stat().st_size:,} bytes, more than any index needs")
        header = parse_header(path.read_bytes(), f"{shown}/{INDEX}")
    arrays = {}
    for name, dtype in DTYPES.items():
        path = folder / "index" / f"{name}.npy"
        arrays[name] = _map(path, dtype, header.files[name][0], f"{shown}/index/{name}.npy")
    index = ShardIndex(header.shards, arrays["members"], arrays["ends"], arrays["names"], header.notes)
    if problem := _contradiction(index, header.num_images):
        raise UserError(f"the index of {shown} is damaged ({problem}); write it again: selfpatch shard IMAGES OUT")
    return index


def _map(path: Path, dtype: np.dtype, num_bytes: int, shown: str) -> np.ndarray:
    try:
        if os.stat(path).st_size != num_bytes:
            raise ValueError(f"{os.stat(path).st_size:,} bytes instead of {num_bytes:,}")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.dtype != dtype or found.ndim != 1:
            raise ValueError(f"{found.ndim} axes of {found.dtype}"[:100])
    except Exception as error:  # numpy parses headers as Python, which raises nearly anything at damaged ones
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{shown} cannot be read ({reason}); write the index again: selfpatch shard IMAGES OUT"
        ) from error
    return found


def _contradiction(index: ShardIndex, num_images: int) -> str:
    if len(index.members) != num_images or len(index.ends) != num_images + 1:
        return f"{len(index.members):,} members and {len(index.ends) - 1:,} names for {num_images:,} images"
    if index.ends[0] != 0 or index.ends[-1] != len(index.names):
        return "names end elsewhere"
    shard_bytes, first = np.array([shard.num_bytes for shard in index.shards], np.int64), index.first_of_shard
    for start in range(0, num_images, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, num_images))
        ends = np.asarray(index.ends[start : part.stop + 1])
        if (
            (np.diff(ends) < 2).any()
            or ends.min() < 0
            or ends.max() > len(index.names)
            or index.names[ends[1:] - 1].any()
        ):
            return "a name is empty, or has no end"
        offset, size = index.members["offset"][part], index.members["size"][part].astype(np.int64)
        room = shard_bytes[np.searchsorted(first, np.arange(part.start, part.stop), side="right") - 1]
        if (offset < BLOCK).any() or (size > MAX_BYTES).any() or (offset > room - size).any():
            return "an image lies beyond its shard"
    return ""
