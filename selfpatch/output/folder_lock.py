"""One process at a time writes to a folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import weakref
from pathlib import Path
from typing import IO, Any

from selfpatch.errors import RunFailedError, UserError
from selfpatch.output.atomic_files import open_to_append

# What `flock` says of a folder that is held, and of a file system that knows no locks.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


LOCK = ".lock"


class FolderLock:
    """Held by the kernel for as long as this process lives: a lock cannot be left behind.

    Processes that are forked from this one do not hold it: they may outlive this one for a moment, or hang.
    """

    def __init__(self, folder: Path):
        _LOCKS.add(self)
        self._folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Nothing happens if it is held already; the folder must exist.

        Raises:
            UserError: another process holds it (the message names host and pid), or the file system has no locks.
        """
        if self._file is not None:
            return
        lock = open_to_append(self._folder / LOCK, mode="a+", errors="replace")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(lock)
            lock.close()
            if error.errno not in _HELD:
                raise UserError(
                    f"{self._folder} cannot be locked against a second run: {error.strerror}. Its file system has no "
                    "locks, or its lock server does not answer; give a folder on another file system"
                ) from None
            raise UserError(
                f"{self._folder} is in use by process {owner.get('pid', '?')} on {owner.get('host', 'this host')}; "
                "wait for it, stop it, or give another folder"
            ) from None
        try:
            lock.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, lock)
            lock.flush()
        except OSError:  # of a full disk: the kernel's lock holds all the same, and its owner goes unnamed
            pass
        self._file = lock

    def keep(self) -> None:
        """Make sure that the lock which is held is still that of the folder: its file may have been deleted.

        Raises:
            RunFailedError: it was, and another process has the folder now.
        """
        if self._file is None:
            return
        held = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._folder / LOCK)
        except FileNotFoundError:
            there = None
        if there is not None and (held.st_ino, held.st_dev) == (there.st_ino, there.st_dev):
            return
        self.close()
        try:
            self.take()
        except UserError as error:
            raise RunFailedError(f"{self._folder / LOCK} was deleted while this run held it: {error}") from None

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the owner's name, which a full disk did not take
                self._file.close()
            self._file = None


def _owner(lock: IO[str]) -> dict[str, Any]:
    """Process and host of who holds it, as far as its file tells."""
    try:
        lock.seek(0)
        owner = json.loads(lock.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The process that holds the folder, as far as it is known; None: nobody does. Writes nothing."""
    try:
        lock = (folder / LOCK).open(encoding="utf-8", errors="replace")
    except OSError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _owner(lock)
    return None


_LOCKS: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in _LOCKS:
        lock.close()


os.register_at_fork(after_in_child=_close_inherited)
