"""Content of a report page as plain values: what is shown, not how. `web/*.js` has one function for each kind of block.

All texts may hold anything, names of files too: the page shows them as they are, and never reads markup in them.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Block = dict[str, Any]
Tone = Literal["", "good", "warn", "bad"]


class Section(NamedTuple):
    """A heading and what is below it.

    Args:
        closed: behind its heading, until it is opened.
    """

    title: str
    blocks: list[Block]
    lead: str = ""
    closed: bool = False


class Page(NamedTuple):
    """A whole page.

    Args:
        badge: what it is about, in a word.
        assets: pictures as data URIs and tables of bytes in base64, by the names that blocks have for them.
    """

    badge: str
    title: str
    subtitle: str
    sections: list[Section]
    assets: Mapping[str, str] = MappingProxyType({})


class Series(NamedTuple):
    """A line of a chart: values over steps, None where one is not finite."""

    name: str
    steps: list[int]
    values: list[float | None]


class Cell(NamedTuple):
    """A cell of a table.

    Args:
        sort: what the column is sorted by; None: the text.
        is_best: in bold.
        link: a file beside the page.
    """

    text: str
    sort: float | None = None
    is_best: bool = False
    link: str = ""
    tone: Tone = ""


def tile(label: str, value: str, note: str = "", tone: Tone = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "tone": tone}


def tiles(*shown: dict[str, str]) -> Block:
    """The few numbers to look at first."""
    return {"kind": "tiles", "tiles": list(shown)}


def texts(lines: Sequence[str], *, tone: Tone = "", large: bool = False) -> Block:
    """One paragraph per line."""
    return {"kind": "text", "lines": list(lines), "tone": tone, "large": large}


def code(label: str, line: str) -> Block:
    """A line to copy."""
    return {"kind": "code", "label": label, "text": line}


def chart(title: str, series: Sequence[Series], *, percent: bool = False, note: str = "") -> dict[str, Any]:
    """
    Args:
        percent: values are fractions and shown in %.
    """
    return {"title": title, "series": [one._asdict() for one in series], "percent": percent, "note": note}


def charts(shown: Sequence[dict[str, Any]], *, small: bool = False) -> Block:
    """Lines over steps; zooming one zooms all of a page."""
    return {"kind": "charts", "charts": list(shown), "small": small}


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, name: str, numeric: int = 0) -> Block:
    """
    Args:
        name: for those who do not see it.
        numeric: number of columns at the right that hold numbers.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return {
        "kind": "table",
        "name": name,
        "columns": [
            {"name": column, "numeric": i >= len(columns) - numeric} for i, column in enumerate(columns)
        ],
        "rows": [[cell._asdict() for cell in row] for row in cells],
    }  # fmt: skip


def bars(title: str, categories: Sequence[str], series: dict[str, list[float | None]]) -> Block:
    """One bar for each category and series; fractions, shown in %."""
    return {
        "kind": "bars",
        "title": title,
        "categories": list(categories),
        "series": [{"name": name, "values": values} for name, values in series.items()],
    }


def intervals(rows: Sequence[dict[str, Any]], *, value: str, difference: str, note: str) -> Block:
    """Dots for values, and whiskers for the interval of a difference.

    Args:
        rows: each `name`, `text`, `values` (one per seed), `mean`, and `difference`: None, or `mean`, `low`, `high`
            (None: there is none), `verdict`; fractions.
        value, difference: headings of the two scales.
    """
    return {"kind": "intervals", "rows": list(rows), "value": value, "difference": difference, "note": note}


def finite(value: Any) -> float | None:
    """A number with the six digits that a page shows; None: it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
