"""Ranges of large local files, of which each process keeps few open."""

import errno
import os
import stat
import threading
from collections import OrderedDict

from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.output.transient_errors import retried

# Open files per process: with 16 workers and 8 ranks on a machine some thousands in all.
MAX_OPEN = 32


class _OpenFile:
    """A file descriptor that closes when its last reader lets go of it."""

    def __init__(self, path: str):
        # Opening a named pipe would wait for ever.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise UnreadableImage("not a regular file")

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class OpenFiles:
    """The files read last, open; safe in threads, and after a fork, as reading moves no position."""

    def __init__(self, limit: int = MAX_OPEN):
        self._limit = limit
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._unlock)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Fewer than `size` bytes only where the file ends.

        Raises:
            UnreadableImage: it cannot be opened or read, or is no regular file.
        """
        try:
            return retried(lambda: self._read(path, offset, size))
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error

    def _read(self, path: str, offset: int, size: int) -> bytes:
        file = self._open(path)
        try:
            data = os.pread(file.descriptor, size, offset)
            while len(data) < size and (more := os.pread(file.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.EIO):  # the next try opens it again
                with self._lock:
                    self._files.pop(path, None)
            raise
        return data

    def _open(self, path: str) -> _OpenFile:
        with self._lock:
            file = self._files.pop(path, None) or _OpenFile(path)
            self._files[path] = file
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
        return file

    def _unlock(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it


OPEN_FILES = OpenFiles()
