"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from selfpatch.errors import UserError


def require_writable(folder: Path) -> None:
    """Refuse a folder that can neither be made nor written to, before work is spent on what should go there.

    Raises:
        UserError: it is, or is below, a file; or its permissions do not allow it.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be a folder to write to: {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} is not writable for you; give another folder, or change its permissions")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well, and vanishes if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def open_to_append(path: Path, *, mode: str = "a", errors: str | None = None) -> IO[Any]:
    """A text file of a run that grows line by line; a link in its place is refused.

    In a folder of somebody else it could make this run write to any file of the user's.

    Raises:
        OSError: it is a link or cannot be opened.
    """
    flags = os.O_WRONLY if mode == "a" else os.O_RDWR
    # Opening a named pipe would wait for ever.
    descriptor = os.open(path, flags | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, mode, encoding="utf-8", errors=errors)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
