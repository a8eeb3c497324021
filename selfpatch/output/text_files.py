"""Text of others in files that programs render: Markdown, which may hold HTML, and tables for spreadsheets."""

import re

from selfpatch.output.printable import printable

# A spreadsheet takes a cell that begins so for a formula, which may call programs.
_FORMULA = re.compile(r"\s*[=+\-@]")
_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in "\\`*[]|~"})


def markdown_text(text: str) -> str:
    """The text as Markdown shows it, in one line: no HTML, no link, no emphasis, no end of a table's cell."""
    return printable(text, keep="\\").translate(_MARKDOWN)


def code_span(text: str) -> str:
    """The text in one line of code within a line of Markdown."""
    text = printable(text, keep="\\")
    fence = "`" * (_longest_run(text) + 1)
    # A blank keeps backticks of its own apart from the fence.
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def code_block(text: str, language: str) -> str:
    """Lines of code, which nothing in them ends."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def spreadsheet_cell(text: str) -> str:
    """The text as a cell of a CSV file, never a formula: such a text begins with an apostrophe."""
    text = printable(text, keep="\\")
    return f"'{text}" if _FORMULA.match(text) else text


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
