"""Writes images, byte for byte, into tar shards of WebDataset's layout, with the index that reads them in place."""

import contextlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import ENDINGS
from selfpatch.data.reading.image_file import UnreadableImage, image_format
from selfpatch.data.shards.shard_index import INDEX, UNFINISHED, IndexBuilder, Shard, is_index, write_index
from selfpatch.data.shards.tar_headers import BLOCK
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.folder_lock import FolderLock
from selfpatch.output.printable import as_path_below

PLAN = "plan.json"
# Two blocks of zeros end a tar file.
_END = bytes(2 * BLOCK)
_ENDING_OF = {"JPEG": ".jpg", "TIFF": ".tif"}


class Member(NamedTuple):
    """An image of a finished shard."""

    index: int  # in the source
    name: str
    offset: int
    size: int
    crc32: int


class Written(NamedTuple):
    """A finished shard.

    Args:
        stop: index of the first image of the source that belongs to the next one.
        left_out: names of images that could not be read, and the reasons.
    """

    file: str
    num_bytes: int
    stop: int
    members: list[Member]
    left_out: list[tuple[str, str]]


def write_shards(images: ImageFiles, out: Path, *, max_bytes: int) -> Iterator[Written]:
    """Write all images to OUT/shard-000000.tar, ...; yields each shard when it is there. The index comes last.

    A shard is written beside its place and renamed. Called again with the same images, it goes on behind the shards
    that are finished; with all of them, it yields nothing. Images are in the source's order; what cannot be read is
    left out.

    Raises:
        UserError: OUT holds something else, or shards of other images or another size; or no image can be read.
    """
    plan = {
        "num_images": len(images),
        "images": images.fingerprint(),
        "contents": images.content_fingerprint(),
        "max_bytes": max_bytes,
    }
    if is_index(out) and _read_json(out / INDEX).get("source") == plan:
        return
    _require_same_plan(out, plan)
    unfinished = out / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(FolderLock(unfinished)) as lock:
        lock.take()
        with atomic_write(unfinished / PLAN) as temporary:
            temporary.write_text(json.dumps(plan), encoding="utf-8")
        builder, shards = IndexBuilder(), []
        for written in _shards(images, out, unfinished, max_bytes):
            for member in written.members:
                builder.add(os.fsencode(member.name), member.offset, member.size, member.crc32)
            shards.append(Shard(written.file, written.num_bytes, len(written.members)))
            yield written
        if not len(builder):
            for shard in shards:
                (out / shard.file).unlink()
            shutil.rmtree(unfinished)
            raise UserError("none of the images can be read, so there is nothing to write; see selfpatch check")
        write_index(builder.build(shards, []), out, plan)
    shutil.rmtree(unfinished)


def _shards(images: ImageFiles, out: Path, unfinished: Path, max_bytes: int) -> Iterator[Written]:
    for leftover in out.glob(".shard-*.tar.*"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    number = position = 0
    while position < len(images):
        tar, record = out / f"shard-{number:06d}.tar", unfinished / f"{number:06d}.json"
        written = _read_record(record, tar, position)
        if written is None:
            written = _write_shard(images, position, tar, max_bytes)
            with atomic_write(record) as temporary:
                temporary.write_text(json.dumps(written), encoding="utf-8")
        yield written
        number, position = number + 1, written.stop


def _read_json(path: Path) -> dict[str, Any]:
    """Nothing where there is no such object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_same_plan(out: Path, plan: dict[str, Any]) -> None:
    then = _read_json(out / UNFINISHED / PLAN)
    if not then and out.exists() and any(entry.name != UNFINISHED for entry in out.iterdir()):
        what = "finished shards" if (out / INDEX).exists() else "something else"
        raise UserError(f"{out} holds {what} already; give a folder that is empty or not there yet")
    if then and then != plan:
        changed = "another --max-size" if {**plan, "max_bytes": 0} == {**then, "max_bytes": 0} else "other images"
        raise UserError(
            f"{out} holds the beginning of shards of {changed}; give the same ones to go on, or another folder"
        )


def _read_record(record: Path, tar: Path, position: int) -> Written | None:
    """A shard that an earlier call finished; None: there is none, and it has to be written."""
    try:
        file, num_bytes, stop, members, left_out = json.loads(record.read_text(encoding="utf-8"))
        written = Written(file, num_bytes, stop, [Member(*m) for m in members], [(n, r) for n, r in left_out])
        is_there = os.stat(tar).st_size == num_bytes and file == tar.name and stop > position
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return written if is_there else None


def _write_shard(images: ImageFiles, start: int, tar: Path, max_bytes: int) -> Written:
    members, left_out, stop = [], [], start
    with atomic_write(tar) as temporary, temporary.open("xb") as file:
        for stop in range(start, len(images)):
            try:
                data = images.location(stop).read_bytes(checked=True)
            except UnreadableImage as error:
                left_out.append((images.name(stop), str(error)))
                continue
            name = _with_ending(os.fsdecode(images.name_bytes(stop)), data)
            header = _header(name, len(data))
            padded = len(header) + -(-len(data) // BLOCK) * BLOCK
            if members and file.tell() + padded + len(_END) > max_bytes:
                break
            members.append(Member(stop, name, file.tell() + len(header), len(data), zlib.crc32(data)))
            _write(file, header, data)
        else:
            stop = len(images)
        file.write(_END)
        num_bytes = file.tell()
    return Written(tar.name, num_bytes, stop, members, left_out)


def _write(file: BinaryIO, header: bytes, data: bytes) -> None:
    file.write(header)
    file.write(data)
    file.write(bytes(-len(data) % BLOCK))


def _header(name: str, size: int) -> bytes:
    """As of tarfile, with nothing that changes from call to call, and a name that stays below where it is unpacked."""
    info = tarfile.TarInfo(as_path_below(name))
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _with_ending(name: str, data: bytes) -> str:
    """Programs that read WebDataset tell kinds by endings; cells of a table have none."""
    if name.lower().endswith(ENDINGS):
        return name
    try:
        format_ = image_format(data)
    except UnreadableImage:
        return name
    return name + _ENDING_OF.get(format_, f".{format_.lower()}")
