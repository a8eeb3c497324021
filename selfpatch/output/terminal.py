"""All text that goes to the terminal: it passes through `printable` here, and nowhere else is anything printed.

Names of files, notes of models and messages of libraries may hold anything, a terminal's commands too.
"""

import sys
import traceback
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfpatch.output.printable import LINES, printable


def say(text: str) -> None:
    """Print a line, with odd characters in the names of files escaped; a closed terminal does not stop a run."""
    try:
        print(printable(text, keep=LINES), flush=True)
    except OSError:
        sys.stdout = None  # type: ignore[assignment]


def say_error(text: str) -> None:
    """As `say`, on stderr; raises what the stream raises."""
    print(printable(text, keep=LINES), file=sys.stderr)


class TextTable(Table):
    """A table of plain text: no cell, header or title is markup, odd characters are escaped; headers may have lines."""

    def __init__(self, *headers: str, title: str | None = None, caption: str | None = None, **settings: Any):
        shown = [None if text is None else plain_text(text) for text in (title, caption)]
        super().__init__(title=shown[0], caption=shown[1], **settings)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: Any = "", footer: Any = "", **settings: Any) -> None:
        super().add_column(plain_text(header, keep=LINES), plain_text(footer), **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*map(plain_text, cells), **settings)


def plain_text(text: str | Text, style: str = "", *, keep: str = "\\") -> Text:
    """Text for rich that is shown as it is, `keep` as in `printable`; a Text keeps its style."""
    if isinstance(text, Text):
        text, style = text.plain, str(text.style)
    return Text(printable(text, keep=keep), style)


def fits(table: Table) -> bool:
    """False if the terminal is too narrow for the table."""
    console = Console()
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width


def show_table(table: Table) -> None:
    """Print a table."""
    Console().print(table)


def escape_tracebacks() -> None:
    """Let Python print uncaught errors with odd characters escaped, as all else."""
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))
