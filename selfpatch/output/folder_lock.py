"""One process at a time writes to a folder."""

import fcntl
import json
import os
import socket
import weakref
from pathlib import Path
from typing import IO, Any

from selfpatch.errors import UserError


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
            UserError: another process holds it (the message names host and pid).
        """
        if self._file is not None:
            return
        lock = (self._folder / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner: dict[str, Any] = json.loads(lock.read() or "{}")
            lock.close()
            raise UserError(
                f"{self._folder} is in use by process {owner.get('pid', '?')} on {owner.get('host', 'this host')}; "
                "wait for it, stop it, or give another folder"
            ) from None
        lock.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, lock)
        lock.flush()
        self._file = lock

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The process that holds the folder, as far as it is known; None: nobody does. Writes nothing."""
    try:
        lock = (folder / ".lock").open(encoding="utf-8")
    except OSError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            try:
                owner = json.loads(lock.read() or "{}")
            except ValueError:
                owner = {}
            return owner if isinstance(owner, dict) else {}
    return None


_LOCKS: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in _LOCKS:
        lock.close()


os.register_at_fork(after_in_child=_close_inherited)
