"""Fingerprints of data sets, wherever their folders lie: hashes of names and sizes, without reading a pixel."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

VAL_SET_DIGITS = 12  # 48 bits: enough to tell apart the sets that one person compares


def val_set(names: Iterable[str], class_names: Sequence[str] = ()) -> str:
    """A short hash of what is scored: the names of images within their data set, in any order, and of the classes."""
    return sha256_of_lines([*sorted(names), "", *class_names])[:VAL_SET_DIGITS]


def files_hash(root: Path, paths: Iterable[Path]) -> str:
    """A hash of names, relative to root, and sizes in bytes, in this order: it is the order of training samples."""
    return sha256_of_lines(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths)


def sha256_of_lines(lines: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for line in lines:
        # A name need not be valid in the encoding of the file system.
        sha.update(f"{line}\n".encode(errors="surrogateescape"))
    return sha.hexdigest()
