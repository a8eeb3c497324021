"""One HTML file with everything in it: content as JSON, a style sheet and a script of our own.

Why no plotting library: Plotly's script has 4.5 MB and Vega's 0.8 MB, in every page, and both set attributes and write
styles that a strict Content-Security-Policy forbids. What is needed are lines, bars, dots and a heat map: some hundred
lines of SVG.

Why it is safe: names of files, classes and settings may hold anything. They are in the page once, as JSON in which
each `<` is escaped, so that nothing ends the element; the script shows them by textContent alone. The policy names the
one style sheet and the one script by their hashes and forbids every connection.
"""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.printable import LINES, printable
from selfpatch.output.terminal import say
from selfpatch.output.versions import installed_version
from selfpatch.visualization.report.blocks import Page, finite

REPORT = "report.html"
# In this order: each uses those before it.
SCRIPTS = ("dom.js", "chart.js", "bars.js", "table.js", "pictures.js", "similarity.js", "report.js")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Cpath fill='%230f766e' d='M0 0h3.5v3.5H0zM4.5 4.5H8V8H4.5z'/%3E"
    "%3Cpath fill='%23e08a3c' d='M4.5 0H8v3.5H4.5z'/%3E%3Cpath fill='%2394a3b8' d='M0 4.5h3.5V8H0z'/%3E%3C/svg%3E"
)


def as_content(page: Page) -> dict[str, Any]:
    """The page as JSON holds it, without its assets; every text without control characters, every number finite."""
    return _clean(
        {
            "badge": page.badge,
            "title": page.title,
            "subtitle": page.subtitle,
            "sections": [section._asdict() for section in page.sections],
            "made": f"selfpatch {installed_version('selfpatch')}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        }
    )


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value if value.isprintable() and value.isascii() else printable(value, keep=LINES)
        case dict():
            return {_clean(name): _clean(part) for name, part in value.items()}
        case list() | tuple():
            return [_clean(part) for part in value]
        case float():
            return finite(value)
        case bool() | int() | None:
            return value
    return printable(str(value), keep=LINES)


def as_html(page: Page, *, live: bool = False) -> str:
    """
    Args:
        live: the page asks the server that it comes from for new content.
    """
    style, script = _web("report.css"), "\n".join(_web(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'{'; connect-src ' + chr(39) + 'self' + chr(39) if live else ''}"
    )
    title = escape(printable(page.title, keep="\\"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="{_ICON}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n"
        f'<body data-live="{"yes" if live else "no"}">\n<div id="page"></div>\n'
        "<noscript>This page draws itself with a script of its own, which is turned off here.</noscript>\n"
        f'<script type="application/json" id="content">{as_json(as_content(page))}</script>\n'
        f'<script type="application/json" id="assets">{as_json(dict(page.assets))}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def as_json(value: Any) -> str:
    """JSON that stays inside of its element, whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(page: Page, path: Path) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(as_html(page), encoding="utf-8")


def page_or_warning(write: Callable[[], None], path: Path) -> bool:
    """Call `write`; an error is printed in a line: no page is worth a run. Returns False then."""
    try:
        write()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        say(f"warning: {path} is not written ({type(error).__name__}: {reason}); all else is")
        return False
    return True


@cache
def _web(name: str) -> str:
    return files("selfpatch.visualization.report").joinpath("web", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
