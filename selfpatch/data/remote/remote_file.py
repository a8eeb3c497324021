"""A file behind a URL: ranges of bytes by fsspec, asked again when the other side fails, and kept on the disk.

Whoever asks gets all bytes that were asked for, or an error: an answer that is too short counts as a failure.
"""

import importlib.util
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from selfpatch.data.reading.image_file import UnreadableImage, first_line
from selfpatch.data.remote.piece_cache import piece_cache
from selfpatch.data.remote.urls import PROTOCOLS, redacted
from selfpatch.errors import UserError

T = TypeVar("T")

# Bytes that are fetched and kept together: images that lie side by side, and far fewer requests than images.
PIECE_BYTES = 4 * 2**20
# Seconds before the second, third, ... try, each times 0.5 to 1.5: processes that failed together do not ask together.
PAUSES_S = (0.2, 1.0, 4.0, 15.0)
# That one request may take: 4 MiB within it is what a slow line gives.
TIMEOUT_S = 60.0


class RemoteFile(NamedTuple):
    """
    Args:
        num_bytes: as the index or the bucket's list says.
        version: whatever changes when the object is replaced (ETag); "": not known.
    """

    url: str
    num_bytes: int
    version: str = ""

    def read(self, offset: int, size: int) -> bytes:
        """By pieces, through the cache; without a cache just these bytes. Fewer only where the file ends.

        Raises:
            UnreadableImage: after several tries it could not be read.
        """
        stop = min(offset + size, self.num_bytes)
        if piece_cache().limit == 0 and stop > offset:
            return fetch(self.url, offset, stop - offset)
        parts = []
        while offset < stop:
            number = offset // PIECE_BYTES
            start = number * PIECE_BYTES
            parts.append(self._read_of_piece(number, offset - start, min(stop, start + PIECE_BYTES) - offset))
            offset += len(parts[-1])
        return b"".join(parts)

    def forget(self, offset: int, size: int) -> None:
        """Remove from the cache what `read` would take from it."""
        for number in range(offset // PIECE_BYTES, (offset + max(size, 1) - 1) // PIECE_BYTES + 1):
            piece_cache().remove(self._key(number))

    def _read_of_piece(self, number: int, offset: int, size: int) -> bytes:
        start = number * PIECE_BYTES
        num_bytes = min(PIECE_BYTES, self.num_bytes - start)
        cache = piece_cache()
        found = cache.read(self._key(number), num_bytes, offset, size)
        if found is None:
            piece = fetch(self.url, start, num_bytes)
            cache.write(self._key(number), piece)
            found = piece[offset : offset + size]
        return found

    def _key(self, number: int) -> str:
        return f"{self.url}\n{self.num_bytes}\n{self.version}\n{PIECE_BYTES}\n{number}"


def fetch(url: str, start: int, size: int) -> bytes:
    """Exactly so many bytes, without the cache.

    Raises:
        UnreadableImage: after several tries there was no such answer.
    """

    def ask() -> bytes:
        files, path = filesystem(url)
        limit = {"timeout": TIMEOUT_S} if files.async_impl else {}
        data = files.cat_file(path, start=start, end=start + size, **limit)
        if len(data) != size:
            raise OSError(f"{len(data):,} bytes instead of {size:,}")
        return data

    try:
        return retried(ask)
    except OSError as error:
        raise UnreadableImage(reason_of(error)) from error


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, of this process, and the path in it.

    Raises:
        UserError: a package is missing.
    """
    protocol = url.partition("://")[0].lower()
    needed = PROTOCOLS.get(protocol, "")
    try:
        import fsspec

        settings: dict[str, Any] = {}
        if protocol == "s3":  # one place tries again, and knows how often: `retried`
            limits = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retries": {"max_attempts": 0}}
            settings = {"config_kwargs": limits}
        files = fsspec.filesystem(protocol, **settings)
        if protocol == "s3":
            files.retries = 1
    except ImportError as error:
        package = f" and {needed}" if needed and importlib.util.find_spec(needed.replace("-", "_")) is None else ""
        raise UserError(
            f"{url} needs packages that are not installed: pip install 'selfpatch[remote]'{package}"
        ) from error
    return files, files._strip_protocol(url)


def retried(ask: Callable[[], T]) -> T:
    """The answer of the other side, asked again after all that may pass.

    Raises:
        OSError: it is not there or not allowed; or the last of all tries failed. No secret is in its message.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return ask()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise OSError(error.errno, reason_of(error)) from None
        except Exception as error:  # clients raise OSError, their own classes, time-outs, nearly anything
            if pause_s is None:
                raise OSError(f"{reason_of(error)}, {len(PAUSES_S) + 1} times") from None
        time.sleep(pause_s * random.uniform(0.5, 1.5))
    raise AssertionError


def reason_of(error: Exception) -> str:
    """In a few words, without secrets."""
    if isinstance(error, FileNotFoundError):
        return "No such file"
    if isinstance(error, PermissionError):
        return "Permission denied"
    if type(error) is OSError and error.strerror:
        return redacted(error.strerror)[:200]
    text = redacted(first_line(error))
    return text if type(error) is OSError else f"{type(error).__name__}: {text}"


def forked() -> None:
    """Drop file systems that fsspec made before a fork, which are of no use after it."""
    try:
        from fsspec.spec import AbstractFileSystem
    except ImportError:
        return
    AbstractFileSystem.clear_instance_cache()
