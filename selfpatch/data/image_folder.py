"""The images below one or several folders, found by their endings."""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import Real

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_files import NamedFiles, append_name, evenly_spaced
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.reading.image_file import FORMATS_TEXT
from selfpatch.data.source import ImageSource
from selfpatch.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".npz")
_ENDINGS = tuple(ending.encode() for ending in ENDINGS)
# Made by macOS and Synology beside the files of others: what is in them is no image, or a thumbnail of one.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
_SYSTEM_FOLDERS = tuple(name.encode() for name in SYSTEM_FOLDERS)


class ImageFolder(NamedFiles):
    """All images below the folders, in an order that depends on their names alone.

    A folder's own files come before those of its subfolders, both sorted by the bytes of their names. Endings count in
    capitals too. Hidden files and folders are left out, and links to folders are not followed (they may form loops);
    links to files are images like others. `notes` tells of other files and of links.

    Args:
        include, exclude: patterns (as of a shell) of names as seen from the folder, or of names alone; nothing to
            include means all.

    Raises:
        UserError: a folder is missing, is a file, or there is no image in any of them.
    """

    def __init__(
        self,
        *folders: Path,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        pixels: PixelFormat = RGB_8,
    ):
        paths = [Path(folder) for folder in folders]
        names, ends, first_of_folder = bytearray(), array("q", [0]), []
        self.num_links = 0  # links to folders that were not followed
        self.left_out: Counter[str] = Counter()  # other files, by their endings
        is_chosen = chosen_by(include, exclude)
        num_found = Counter()
        for folder in paths:
            _check_folder(folder)
            first_of_folder.append(len(ends) - 1)
            self.num_links += _scan(os.fsencode(folder), names, ends, self.left_out, is_chosen, num_found)
        notes = left_out_notes(self.left_out, self.num_links)
        if num_found["not chosen"]:
            notes.append(f"{plural(num_found['not chosen'], 'image is', 'images are')} left out by the patterns given")
        super().__init__(paths, names, ends, first_of_folder, notes=notes, pixels=pixels)
        if len(self) == 0 and num_found["not chosen"]:
            raise UserError(
                f"none of the {num_found['not chosen']:,} images below {', '.join(map(str, paths))} is left by the "
                f"patterns: include {' '.join(include) or 'all'}, exclude {' '.join(exclude) or 'none'}; they are "
                'compared with names as seen from the folder, such as "site_a/*" or "*_rgb.tif"'
            )
        if len(self) == 0:
            raise UserError(_no_images(paths, self.left_out, self.num_links))


def chosen_by(include: Sequence[str], exclude: Sequence[str]) -> Callable[[bytes], bool] | None:
    """A test of names as seen from the folder; None: all are chosen."""
    if not include and not exclude:
        return None

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern) for pattern in patterns)

    def is_chosen(name: bytes) -> bool:
        text = os.fsdecode(name)
        return (not include or matches(text, include)) and not matches(text, exclude)

    return is_chosen


def left_out_notes(left_out: Counter[str], num_links: int) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"{plural(left_out.total(), 'file was', 'files were')} left out: {_most_common(left_out, 8)}")
    if num_links:
        links = plural(num_links, "link to a folder was", "links to folders were")
        notes.append(f"{links} not followed: give the targets, or put the files there")
    return notes


def plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def require_readable(images: ImageSource, num_tries: int = 32) -> None:
    """Refuse images of which none can be read, before anything is trained.

    A few images, spread evenly over all, are opened until one of them can be read.
    """
    indices = evenly_spaced(len(images), num_tries)
    reasons = []
    for index in indices:
        try:
            images.read(index)
            return
        except UnreadableImage as error:
            reasons.append(f"{images.name(index)}: {error}")
    raise UserError(
        f"none of {len(indices)} images, spread over the {len(images)} found, can be read. The first: "
        + "; ".join(reasons[:3])
        + f". Files in {FORMATS_TEXT} format are read; `selfpatch check` lists what is wrong with each"
    )


def read_evenly_spaced(images: ImageSource, count: int) -> Iterator[tuple[str, Real[np.ndarray, "_h _w _c"]]]:
    """Name and pixels of at most `count` images, spread evenly over all, without those that cannot be read."""
    for index in evenly_spaced(len(images), count):
        try:
            yield images.name(index), images.read(index)
        except UnreadableImage:
            continue


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{folder} is a file; give the folder that holds the images")
    nearest = next(parent for parent in folder.absolute().parents if parent.exists())
    raise UserError(f"the folder {folder} does not exist (but {nearest} does); give a folder of images")


def _scan(
    root: bytes,
    names: bytearray,
    ends: array,
    left_out: Counter[str],
    is_chosen: Callable[[bytes], bool] | None,
    num_found: Counter[str],
) -> int:
    """Append what lies below `root`, count the endings of other files, and return the number of links not followed."""
    num_links = 0
    pending = [b""]
    while pending:
        below = pending.pop()
        below_slash = os.path.join(below, b"")
        files, folders = [], []
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SYSTEM_FOLDERS:
                        folders.append(entry.name)
                    continue
                if entry.name.lower().endswith(_ENDINGS):
                    files.append(entry.name)
                elif entry.is_dir():
                    num_links += 1
                else:
                    left_out[_ending(entry.name)] += 1
        files.sort()
        for name in files:
            if is_chosen is None or is_chosen(below_slash + name):
                append_name(names, ends, below_slash, name)
            else:
                num_found["not chosen"] += 1
        pending += [os.path.join(below, name) for name in sorted(folders, reverse=True)]
    return num_links


def _ending(name: bytes) -> str:
    """Such as ".txt"; "" also for what follows the last dot of "scan.0017" or "v1. all of them"."""
    ending = os.path.splitext(name)[1].lower()
    return ending.decode() if ending[1:].isalnum() and not ending[1:].isdigit() and len(ending) <= 8 else ""


def _most_common(left_out: Counter[str], num_kinds: int) -> str:
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))[:num_kinds]
    parts = [f"{count:,} {ending or 'without an ending'}" for ending, count in most]
    if rest := left_out.total() - sum(count for _, count in most):
        parts.append(f"{rest:,} others")
    return ", ".join(parts)


def _no_images(folders: Sequence[Path], left_out: Counter[str], num_links: int) -> str:
    found = "no file at all"
    if left_out:
        found = f"{plural(left_out.total(), 'file', 'files')}, none with such an ending ({_most_common(left_out, 4)})"
    if num_links:
        found += f", and {plural(num_links, 'link to a folder', 'links to folders')}, not followed: give the targets"
    return (
        f"there is no image below {', '.join(map(str, folders))}: looked for {' '.join(ENDINGS)} in all subfolders, "
        f"found {found}"
    )
