"""A command of the command line: its options, and the function that they are given to."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One command. Its options have the names of the function's arguments, so that each is declared once."""

    summary: str  # a line of `selfpatch --help`
    options: Callable[[Sequence[str]], type]  # a dataclass, which may depend on the arguments
    function: str  # "module:name", imported only when it is called, as it needs torch
    keywords: Callable[[Any], dict[str, Any]] = vars  # options -> arguments of the function

    def __call__(self, options: Any) -> int:
        """Call the function; returns the exit code."""
        module, _, name = self.function.partition(":")
        result = getattr(import_module(module), name)(**self.keywords(options))
        stopped_by = getattr(result, "stopped_by", None)
        return 128 + stopped_by if stopped_by else 0


def given_value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag that decides which other flags there are; the last one counts, as in `arguments.parse`."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag:
            value = arguments[i + 1] if i + 1 < len(arguments) else None
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
