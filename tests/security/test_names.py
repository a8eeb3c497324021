"""Names with commands to a terminal, HTML, Markdown and formulas: harmless wherever they are shown."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from selfpatch import cli
from selfpatch.output.text_files import code_block, code_span, markdown_text, spreadsheet_cell
from tests.security.reading import ROOT

NAMES = [
    "\x1b]0;title\x07\x1b[2J.jpg",
    "\x9b31m.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "[bold red]markup[nothing].jpg",
    "=cmd|'calc'!A0.jpg",
    "a\nb\tc.jpg",
    "\u202egpj.exe.jpg",
    "$(touch canary);`touch canary`.jpg",
    "](javascript:alert(1)).jpg",
]


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "\x1b[31m[bold]images<b>"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(folder / name, "JPEG")
    (folder / "\x1b[31mbad.jpg").write_bytes(b"no image")
    return folder


def controls(text: str) -> list[str]:
    return re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_check_on_a_pipe(images, tmp_path, capsys):
    assert cli.main(["check", str(images), "--out", str(tmp_path / "bad.txt")]) == 0
    assert cli.main(["check", str(images), "--json"]) == 0
    assert cli.main(["check", str(images / "not there")]) == 2
    shown = capsys.readouterr()
    assert controls(shown.out + shown.err + (tmp_path / "bad.txt").read_text()) == []
    assert "[bold]images" in shown.out  # markup is text
    assert not Path("canary").exists()


def test_check_on_a_terminal(images):
    """Where rich draws colors: its own commands are there, and none of the names'."""
    controller, terminal = pty.openpty()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    command = [sys.executable, "-m", "selfpatch", "check", str(images)]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=terminal, stderr=subprocess.DEVNULL) as process:
        os.close(terminal)
        content = b""
        try:
            while part := os.read(controller, 65536):
                content += part
        except OSError:  # the other end is closed
            pass
        assert process.wait(120) == 0
    assert b"]0;title\x07" not in content and b"\x1b[2J" not in content and b"\x1b[31m" not in content
    assert rb"\x1b]0;title" in content or rb"\x1b[31mbad" in content


def test_tracebacks(images):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "selfpatch", "check", str(images / "\x1b[5m"), "--traceback"]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert "Traceback" in result.stderr and controls(result.stderr) == []


def test_texts_in_files():
    assert markdown_text("<b>|*`[x](y)&") == "&lt;b&gt;\\|\\*\\`\\[x\\](y)&amp;"
    assert code_span("a`b``c\n") == "``` a`b``c\\n ```" and code_span("a") == "`a`"
    assert code_block("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert [spreadsheet_cell(text) for text in ("=1", " +1", "a=1", "0.5")] == ["'=1", "' +1", "a=1", "0.5"]
