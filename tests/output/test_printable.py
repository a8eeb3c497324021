"""Names of files in logs, tables and messages: one line, one cell, no command to a terminal, always text."""

import pytest

from selfpatch.cli.main import report
from selfpatch.errors import UserError
from selfpatch.output.printable import as_path_below, printable
from selfpatch.output.progress import TrainingProgress
from selfpatch.output.terminal import say

NAMES = {
    "plain name.jpg": "plain name.jpg",
    "é漢字🦊": "é漢字🦊",
    "two\nlines": r"two\nlines",
    "tab\tand\rreturn": r"tab\tand\rreturn",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\u009b31m",  # a control sequence in one character
    "\udcff\udc80": r"\xff\x80",  # bytes that are no UTF-8
    "\ud800": r"\ud800",
    "\u202egpj.exe": r"\u202egpj.exe",  # turns what follows around
    "\u2028": r"\u2028",
    r"\xff": r"\\xff",
    "\0": r"\x00",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_printable(name, shown):
    assert printable(name) == shown
    assert shown.encode().decode() == shown and shown.isprintable()


def test_names_stay_apart():
    assert len({printable(name) for name in NAMES}) == len(NAMES)
    assert printable("a\\b\nc\x1b", keep="\n\\") == "a\\b\nc\\x1b"


def test_what_is_printed(capsys):
    say("1 of 2: a\x1b[2J\udcff\nsecond line")
    TrainingProgress(0, 10).say("b\x07")
    assert report(UserError("no folder \x1b\udcff")) == 2
    out, err = capsys.readouterr()
    assert out == "1 of 2: a\\x1b[2J\\xff\nsecond line\nb\\x07\n"
    assert err == "selfpatch: no folder \\x1b\\xff\n"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b.png", "a/b.png"),
        ("../../x", "__/__/x"),
        ("/etc/x", "etc/x"),
        ("a/./..//b", "a/__/b"),
        ("..x/x..", "..x/x.."),
    ],
)
def test_names_stay_below_a_folder(name, path):
    assert as_path_below(name) == path
