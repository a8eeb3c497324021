"""The shape of the package: small rooms, short files and functions, methods known by name in few places."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfpatch"
SOURCES = sorted(path for folder in ("selfpatch", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

MAX_ENTRIES, MAX_LINES, MAX_FUNCTION_LINES = 20, 350, 60
MAX_STEP_FILES, MAX_STEP_LINES = 16, 2800

# Where a method may be known by its name. Protocols carry the names of the programs that published them.
KNOWS_METHODS = (
    "objectives", "config", "recipes", "backbones/checkpoints", "evaluation/protocols", "visualization/positives.py",
    "export/formats.py", "cli/commands/export.py",  # the layout of a program's checkpoint, as its reader
)  # fmt: skip


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_rooms_have_few_entries():
    rooms = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    crowded = {
        relative(room): entries
        for room in rooms
        if (entries := len([entry for entry in room.iterdir() if entry.name != "__pycache__"])) > MAX_ENTRIES
    }
    assert not crowded


def test_files_are_short():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_long_functions_are_numbered():
    long = []
    for path in SOURCES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                source = ast.get_source_segment(text, node) or ""
                numbered = re.search(r"^ {4,8}# 1\. ", source, re.M) and re.search(r"^ {4,8}# 2\. ", source, re.M)
                if len(source.splitlines()) > MAX_FUNCTION_LINES and not numbered:
                    long.append(f"{relative(path)}: {node.name}")
    assert not long


@pytest.mark.parametrize("method", ["dino", "selfpatch"])
def test_no_other_code_names_a_method(method):
    """No name, attribute, argument, or string without blanks; prose may. DINOv2 and v3 are programs that are followed."""
    places = []
    for path in SOURCES:
        room = path.relative_to(ROOT).as_posix().removeprefix("selfpatch/")
        if "benchmarks" in path.parts or room.startswith(KNOWS_METHODS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name for key in ("id", "attr", "arg", "name") if isinstance(name := getattr(node, key, None), str)]
            if isinstance(node, ast.alias):
                names = [node.asname or ""]
            is_word = (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s", node.value)
            )
            if is_word and not PACKAGE_NAME.match(node.value):
                names.append(node.value)
            found = [name for name in names if method in re.sub(r"dinov\d", "", name.lower().replace("_", ""))]
            places += [f"{relative(path)}:{node.lineno}: {name}" for name in found]
    assert not places


# Strings that mean the package: the distribution, a module, the command, a key of a file's metadata.
PACKAGE_NAME = re.compile(r"selfpatch($|\.|:|_format|_version|-demo)")


def test_contributing_follows_one_step_and_counts_right():
    """Every file of the table is there, and their number and lines are those of the text and within the limits."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Follow one training step")[2].partition("\n## ")[0]
    files = re.findall(r"^\| \d+ \| `([\w/]+\.py)`", section, re.M)
    numbers = re.search(r"(\d+) files, ([\d,]+) lines", section)
    count, lines = (int(number.replace(",", "")) for number in numbers.groups())
    assert len(files) == count <= MAX_STEP_FILES
    assert all((PACKAGE / file).is_file() for file in files)
    total = sum(len((PACKAGE / file).read_text().splitlines()) for file in files)
    assert abs(total - lines) <= 50
    assert total <= MAX_STEP_LINES
    needed = ("commands/", "config/", "data/", "backbones/", "recipes/", "training/", "pretraining/", "objectives/")
    assert all(any(file.startswith(room) for file in files) for room in needed)
