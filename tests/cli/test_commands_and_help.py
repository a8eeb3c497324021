"""Commands by their names, mistakes in their own options, and help."""

import dataclasses
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

from selfpatch import cli, config
from selfpatch.config import objectives
from selfpatch.evaluation import protocols


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrian", "a", "b"], ["'pretrian'", "'pretrain'", "demo, check"]),
        (["pretrain"], ["IMAGES and OUT are missing", "selfpatch pretrain IMAGES OUT"]),
        (["evaluate", "m"], ["--data and --out are missing"]),
        (["evaluate", "m", "--task", "linear"], ["'linear'", "in-context-segmentation"]),
        (["evaluate", "m", "--preset", "quik"], ["in-context-segmentation", "'quik'", "'quick'"]),
        (["evaluate", "m", "--task", "linear-segmentation", "--preset", "hummingbird"], ["'hummingbird'", "dinov3"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--image-size", "-4"], ["image-size", "-4", "at least 1"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--seed", "5000000000"], ["seed", "5000000000", "2147483647"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--imagesize", "4"], ["--imagesize", "--image-size?"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--device", "cuda:7"], ["'cuda:7'", "cpu"]),
        (["export", "m", "o", "--format", "onxn"], ["--format", "'onxn'", "timm"]),
        (["visualize", "m", "i", "o", "--count", "0"], ["count", "0", "at least 1"]),
        (["visualize", "m", "i", "o", "--window-size", "4"], ["window-size", "4", "odd"]),
        (["visualize", "m", "i", "o", "--pixel", "4"], ["--pixel", "'4'", "2 whole numbers or None"]),
        (["embed", "m", "i", "o", "--level", "token"], ["--level", "'token'", "image or patch"]),
        (["compare", "a", "--out"], ["--out", "no value"]),
        (["demo", "--seed", "-1"], ["seed", "-1", "[0, 2147483647]"]),
        (["check", "nope"], ["nope"]),
        (["embed", "m", "nope", "o"], ["nope"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_commands(arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments, *says, out=tmp_path)


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=lambda command: "".join(command))
def test_help_and_mistakes_need_no_torch_and_less_than_a_second(command):
    code = (
        "import sys, time; from selfpatch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not sys.argv[2:] or main([sys.argv[1], '--no-such-option']) == 2\n"
        "heavy = {'torch', 'timm', 'cv2', 'PIL', 'matplotlib', 'scipy'} & sys.modules.keys()\n"
        "print('heavy:', sorted(heavy), 'cpu:', time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    heavy, cpu = re.search(r"heavy: (\[.*\]) cpu: (\S+)", done.stdout).groups()
    assert heavy == "[]"
    assert float(cpu) < 1
    assert "usage: selfpatch" in done.stdout


OPTIONS = [import_module(f"selfpatch.cli.commands.{name}") for name in cli.COMMANDS]
SETTINGS = [
    import_module(f"{package.__name__}.{found.name}")
    for package in (config, objectives, protocols)
    for found in iter_modules(package.__path__)
    if found.name
    not in ("cache_folder", "io", "objectives", "pixel_format", "processes", "ranges", "renamed", "values")
]


def helps(module) -> list[tuple[str, list[str]]]:
    """Every field of the dataclasses of a module, with the lines of comment right above it."""
    found, comment = [], []
    for line in inspect.getsource(module).splitlines():
        if match := re.match(r"\s+# (.*)", line):
            comment.append(match[1])
            continue
        if match := re.match(r"\s{4,8}(\w+): .+", line):
            found.append((match[1], comment))
        comment = []
    return found


@pytest.mark.parametrize("module", SETTINGS, ids=lambda module: module.__name__)
def test_every_setting_has_help_of_its_own(module):
    """tyro also gives a comment to the fields on the lines right after the one it stands above."""
    lines = inspect.getsource(module).splitlines()
    is_field = [re.match(r"    \w+: .+ = ", line) is not None for line in lines]
    assert any(is_field)
    borrowed = [
        line
        for i, line in enumerate(lines)
        if is_field[i] and is_field[i - 1] and lines[i - 2].lstrip().startswith("# ")
    ]
    assert borrowed == []


@pytest.mark.parametrize("module", [*SETTINGS, *OPTIONS], ids=lambda module: module.__name__)
def test_help_stands_alone(module):
    """No phrase that only reads on from its neighbor, or that begins in the middle of a sentence."""
    fragments = (
        "of ",
        "likewise",
        "and ",
        "that ",
        "which ",
        "at the ",
        "from ",
        "over ",
        "how ",
        "whether ",
        "on ",
        "in ",
    )
    assert [name for name, comment in helps(module) if comment and comment[0].lower().startswith(fragments)] == []


@pytest.mark.parametrize("module", SETTINGS, ids=lambda module: module.__name__)
def test_every_setting_has_help(module):
    """But the groups, whose class says what they are."""
    kinds = [k for k in vars(module).values() if dataclasses.is_dataclass(k) and k.__module__ == module.__name__]
    types = {field.name: str(field.type) for kind in kinds for field in dataclasses.fields(kind)}
    assert [n for n, comment in helps(module) if n in types and not comment and "Config" not in types[n]] == []


@pytest.mark.parametrize(
    "arguments", [[name] for name in cli.COMMANDS] + [["evaluate", "--task", task] for task in protocols.TASKS]
)
def test_help_uses_no_word_that_the_field_does_not(arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"\b(share of|shares of|likewise|light|grey|made again|is said|is told)\b", shown) == []
