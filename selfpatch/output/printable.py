"""File names as text that terminals, tables and pictures can hold."""

import os

# Left alone in texts that may hold names: line breaks and backslashes are their own.
LINES = "\n\\"


def printable(name: str | os.PathLike[str], *, keep: str = "") -> str:
    r"""The name with backslash escapes for control characters, bytes that are no UTF-8, and backslashes themselves.

    So that a name is one line and one cell, moves no cursor, and can always be encoded: a line break becomes `\n`, a
    terminal's escape `\x1b`, the byte FF `\xff`. Two names never become one.

    Args:
        keep: characters to leave alone, e.g. LINES.
    """
    return "".join(c if c in keep or (c.isprintable() and c != "\\") else _escape(c) for c in os.fspath(name))


def as_path_below(name: str) -> str:
    """The name as a path that stays below whatever folder it is joined to: without "..", and not absolute.

    Names that others chose (in lists, tar files, indexes) name images, and no place to write to.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join("__" if part == ".." else part for part in parts)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode hides it
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # not \x85, which would be the byte
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode("ascii")
