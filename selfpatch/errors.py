"""Errors by whose they are: a user's mistake, a run that failed, here or in another process, one that was stopped."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """A request that cannot be met as it stands. One paragraph: what came, what is allowed, what to do.

    The command line prints it without a traceback and exits with 2.
    """


class RunFailedError(RuntimeError):
    """Work that had begun and could not go on, through no mistake that was known before. Exit code 1."""


class StoppedError(Exception):
    """A signal ended the work before its time; it is saved, and the same command goes on. Exit code 128 + `number`."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class FailedElsewhereError(Exception):
    """Another process of the same run failed, and reports why. Exit code `code`, as that one's."""

    def __init__(self, rank: int, *, code: int):
        super().__init__(f"rank {rank} of this run failed")
        self.code = code


@contextlib.contextmanager
def working(*failures: type[Exception]) -> Iterator[None]:
    """The work of a command: an OSError inside is a run that failed, such as by a full disk, not a user's mistake.

    Args:
        failures: further errors by which the work may fail.

    Raises:
        RunFailedError: in place of an OSError, with its path and its reason, or of another failure, with its message.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads the output any more
    except OSError as error:
        raise RunFailedError(describe_os_error(error)) from error
    except failures as error:
        raise RunFailedError(str(error)) from error


def describe_os_error(error: OSError) -> str:
    """The path and the reason, such as "out/metrics.jsonl: No space left on device"."""
    return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The mistake of a name that is none of those allowed, with the nearest and all of them."""
    nearest = difflib.get_close_matches(name, list(allowed), n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return UserError(f"unknown {kind} {name!r}{hint} There are: {', '.join(allowed)}")
