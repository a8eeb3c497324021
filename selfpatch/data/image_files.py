"""Images that are stored encoded, by name and location: what folders, lists, shards and tables have in common."""

import hashlib
import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Real, UInt8

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.location import FileLocation, Location
from selfpatch.data.reading.decode import read_pixels
from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.output.printable import printable

# Images and bytes of each that tell whether a folder is the one it was: few enough for a network file system.
NUM_COMPARED, BYTES_COMPARED = 64, 2**16


class ImageFiles:
    """Images in a fixed order, each with a name and a location of its bytes; a source of images (`ImageSource`).

    Subclasses give `__len__`, `name`, `location` and `fingerprint`.

    Args:
        notes: sentences on what lies beside the images and is not among them.
        pixels: the format in which images are read. Settable, as it may follow from the images.
    """

    # False: what `path` gives names an image for people, and is no file that another program could open.
    are_files = False

    def __init__(self, *, notes: list[str], pixels: PixelFormat = RGB_8):
        self.notes = notes
        self.pixels = pixels

    @staticmethod
    def of_paths(paths: Iterable[Path]) -> "NamedFiles":
        """These files, in this order, each named by its whole path."""
        names, ends = bytearray(), array("q", [0])
        for path in paths:
            append_name(names, ends, os.fsencode(path.absolute()))
        return NamedFiles([Path("/")], names, ends, [0], notes=[])

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def name_bytes(self, index: int) -> bytes:
        """The name as it is stored, to be kept in copies."""
        return os.fsencode(self.name(index))

    def location(self, index: int) -> Location:
        """The location of an image's bytes; small, and understood by other processes."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def path(self, index: int) -> Path:
        return self.location(index).path

    def read(self, index: int) -> Real[np.ndarray, "H W C"]:
        """The pixels; raises UnreadableImage."""
        return read_pixels(self.location(index).read_bytes(), self.pixels)

    def content_fingerprint(self) -> str:
        """Changes when images are replaced under the same names: sizes and first bytes of NUM_COMPARED of them.

        Files that are no longer there, or do not answer, count as such: it never fails.
        """
        digest = hashlib.sha256()
        for index in evenly_spaced(len(self), NUM_COMPARED):
            try:
                location = self.location(index)
                head = location.read_bytes(limit=BYTES_COMPARED)
                digest.update(b"%d %b" % (location.num_bytes(), hashlib.sha256(head).digest()))
            except (UnreadableImage, OSError):
                digest.update(b"unreadable")
        return digest.hexdigest()


class NamedFiles(ImageFiles):
    """Images by their names below one or several folders.

    Names are held as one block of bytes: a million paths cost their length plus 8 bytes each, workers share them, and
    names that are no valid UTF-8 work.

    Args:
        names: each ends in a zero byte.
        ends: where each of them ends, after a zero.
        first_of_folder: index of the first image of each folder.
    """

    are_files = True

    def __init__(
        self,
        folders: list[Path],
        names: bytearray | UInt8[np.ndarray, "_bytes"],
        ends: array | Int64[np.ndarray, "_ends"],
        first_of_folder: list[int],
        *,
        notes: list[str],
        pixels: PixelFormat = RGB_8,
    ):
        super().__init__(notes=notes, pixels=pixels)
        self.folders = folders
        # As they were gathered: copies would double the peak.
        self._names = names
        self._ends = np.frombuffer(ends, np.int64) if isinstance(ends, array) else ends
        self._first_of_folder = np.array(first_of_folder, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def location(self, index: int) -> Location:
        folder, name = self._folder_and_name(index)
        return FileLocation(folder / name)

    def name(self, index: int) -> str:
        """As seen from the folder, printable; of several folders, below the folder as it was given."""
        folder, name = self._folder_and_name(index)
        return printable(name if len(self.folders) == 1 else folder / name)

    def _folder_and_name(self, index: int) -> tuple[Path, str]:
        folder = self.folders[np.searchsorted(self._first_of_folder, index, side="right") - 1]
        return folder, os.fsdecode(self.name_bytes(index))

    def name_bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}; they are numbered 0 to {len(self) - 1}")
        # A name keeps the zero byte that ends it in the block.
        return bytes(self._names[self._ends[index] : self._ends[index + 1] - 1])

    def fingerprint(self) -> str:
        """Changes when images are added, removed or renamed; not when the folders move as they are.

        Only names count: sizes would cost one round trip a file on a network file system. So a folder and its shards
        have the same one.
        """
        digest = hashlib.sha256(self._first_of_folder.tobytes())
        digest.update(self._names)
        return digest.hexdigest()


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int)).tolist()


def append_name(names: bytearray, ends: array, *parts: bytes) -> None:
    """Add a name, in parts, to a block as `ImageFiles` holds it."""
    for part in (*parts, b"\0"):
        names += part
    ends.append(len(names))
