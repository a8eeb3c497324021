"""Images in tar shards, read where they lie: random access by offset, nothing is unpacked."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_files import NamedFiles
from selfpatch.data.image_folder import chosen_by, plural
from selfpatch.data.location import Location
from selfpatch.data.remote.remote_file import RemoteFile
from selfpatch.data.shards.byte_range import ByteRange
from selfpatch.data.shards.shard_index import ShardIndex
from selfpatch.errors import UserError
from selfpatch.output.printable import printable


class ImageShards(NamedFiles):
    """The images that an index lists, in its order; names and fingerprints are those of the folder that was sharded.

    Args:
        files: the shards: paths, or objects behind URLs.
        shown: what messages call the set.
    """

    are_files = False

    def __init__(
        self,
        index: ShardIndex,
        files: Sequence[str | RemoteFile],
        shown: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        pixels: PixelFormat = RGB_8,
    ):
        notes = list(index.notes)
        shard_of = None
        if (is_chosen := chosen_by(include, exclude)) is not None:
            num_all = len(index.members)
            index, shard_of = _chosen(index, is_chosen)
            if not len(index.members):
                raise UserError(
                    f"none of the {num_all:,} images in {shown} is left by the patterns: include "
                    f"{' '.join(include) or 'all'}, exclude {' '.join(exclude) or 'none'}"
                )
            if num_left := num_all - len(index.members):
                notes.append(f"{plural(num_left, 'image is', 'images are')} left out by the patterns given")
        super().__init__([Path(shown)], index.names, index.ends, [0], notes=notes, pixels=pixels)
        self.files = list(files)
        self._members, self._first_of_shard, self._shard_of = index.members, index.first_of_shard, shard_of

    def location(self, index: int) -> Location:
        name = os.fsdecode(self.name_bytes(index))
        if self._shard_of is not None:
            shard = self._shard_of[index]
        else:
            shard = np.searchsorted(self._first_of_shard, index, side="right") - 1
        offset, size, crc32 = self._members[index].item()
        return ByteRange(self.files[shard], name, offset, size, crc32)

    def name(self, index: int) -> str:
        return printable(os.fsdecode(self.name_bytes(index)))


def _chosen(index: ShardIndex, is_chosen: Any) -> tuple[ShardIndex, np.ndarray]:
    """The images whose names are chosen, and the shard of each."""
    names, ends, kept = bytearray(), [0], []
    for i in range(len(index.members)):
        name = bytes(index.names[index.ends[i] : index.ends[i + 1]])
        if is_chosen(name[:-1]):
            names += name
            ends.append(len(names))
            kept.append(i)
    positions = np.array(kept, np.int64)
    shard_of = np.searchsorted(index.first_of_shard, positions, side="right") - 1
    chosen = index._replace(
        members=index.members[positions],
        names=np.frombuffer(bytes(names), np.uint8),
        ends=np.array(ends, np.int64),
    )
    return chosen, shard_of
