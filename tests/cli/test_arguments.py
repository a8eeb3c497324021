"""Arguments as users write them: every form of a value, and every mistake with the option, the value and the range."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from selfpatch.cli import COMMANDS
from selfpatch.cli.arguments import parse
from selfpatch.cli.commands.compare import Compare
from selfpatch.cli.options import FLAT, Images
from selfpatch.config.ranges import Config, Positive
from selfpatch.errors import UserError


@dataclass(frozen=True)
class Part(Config, group="part"):
    # scale
    scale: tuple[float, float] = (0.5, 1.0)
    # switch of the part
    on: bool | None = None


@dataclass(frozen=True)
class Group(Config):
    # side or sides
    size: Annotated[int | tuple[int, int] | None, Positive] = 224
    # rate
    lr: Annotated[float, Positive] = 1.0
    # batch
    batch_size: Literal["auto"] | int | None = None
    # names
    names: tuple[str, ...] = ()
    # switch
    compile: bool = False
    # a word that is called none, or nothing
    padding: Literal["zeros", "none"] | None = "zeros"
    # text or nothing
    split: str | None = "val"

    part: Part = Part()

    absent: Part | None = None


@dataclass(frozen=True)
class Options:
    images: Images
    group: Annotated[Group, FLAT] = Group()
    # a folder
    folder: Path | None = None


def read(*arguments: str) -> Options:
    return parse(Options, ["I", *arguments], "prog")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--size", "96"], "size", 96),
        (["--size", "96", "128"], "size", (96, 128)),
        (["--size=96"], "size", 96),
        (["--size", "None"], "size", None),
        (["--lr", "5e-4"], "lr", 5e-4),
        (["--lr=.5"], "lr", 0.5),
        (["--batch-size", "auto"], "batch_size", "auto"),
        (["--batch_size", "1e3"], "batch_size", 1000),
        (["--batch-size", "null"], "batch_size", None),
        (["--names", "a", "b", "--lr", "2"], "names", ("a", "b")),
        (["--names"], "names", ()),
        (["--split", "none"], "split", None),
        (["--padding", "none"], "padding", "none"),
        (["--padding", "None"], "padding", None),
        (["--split=--odd"], "split", "--odd"),
        (["--part.scale", "-1", "2"], "part.scale", (-1.0, 2.0)),
        (["--lr", "1", "--lr", "2"], "lr", 2.0),
    ],
)
def test_values(arguments, name, value):
    found = read(*arguments).group
    for key in name.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("flag", "off"), [("--compile", "--no-compile"), ("--part.on", "--part.no-on")])
@pytest.mark.parametrize("place", [0, 1])
def test_switches_in_every_form_and_place(flag, off, place):
    forms = {
        (flag,): True, (flag, "True"): True, (flag, "true"): True, (f"{flag}=true",): True,
        (off,): False, (flag, "False"): False, (f"{flag}=false",): False, (f"{flag}=False",): False,
    }  # fmt: skip
    if flag == "--part.on":
        forms |= {("--no-part.on",): False, (flag, "None"): None, (f"{flag}=none",): None}
    for form, value in forms.items():
        arguments = ["I", "--lr", "2"]
        arguments[place:place] = form
        found = parse(Options, arguments, "prog")
        assert (found.group.compile if flag == "--compile" else found.group.part.on) is value, form
        assert (found.images, found.group.lr) == ("I", 2.0)


def test_words_after_two_dashes_are_no_options():
    assert parse(Options, ["--lr", "2", "--", "--images"], "prog").images == "--images"


def test_a_list_leaves_what_the_command_cannot_do_without():
    assert parse(Compare, ["--metrics", "mIoU", "J", "A"], "prog") == Compare((Path("A"),), metrics=("mIoU", "J"))
    assert parse(Compare, ["A", "B", "--metrics", "mIoU", "J"], "prog").results == (Path("A"), Path("B"))
    assert parse(Compare, ["A", "--split-protocols"], "prog").split_protocols


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--size", "3.5"], ["--size", "'3.5'", "a whole number, 2 whole numbers or None"]),
        (["--size", "0"], ["size", "0", "at least 1"]),
        (["--size", "96", "0"], ["size", "(96, 0)", "at least 1"]),
        (["--lr", "high"], ["--lr", "'high'", "a number"]),
        (["--lr", "nan"], ["--lr", "'nan'", "a number"]),
        (["--lr"], ["--lr", "no value", "a number"]),
        (["--lr="], ["--lr", "''", "a number"]),
        (["--lr", "--size", "1"], ["--lr", "no value"]),
        (["--batch-size", "2.5"], ["--batch-size", "'2.5'", "auto, a whole number or None"]),
        (["--part.scale", "0.5"], ["--part.scale", "'0.5'", "2 numbers"]),
        (["--part.scale", "0.5", "x"], ["--part.scale", "'0.5 x'", "2 numbers"]),
        (["--compile=maybe"], ["--compile", "'maybe'", "true or false"]),
        (["--no-compile=True"], ["--no-compile", "--compile"]),
        (["--sise", "3"], ["--sise", "--size"]),
        (["--scale", "3"], ["--scale", "--part.scale"]),
        (["--qqqqqq"], ["--qqqqqq"]),
        (["stray"], ["'stray'", "IMAGES"]),
        (["--compile", "maybe"], ["'maybe'"]),
        (["--absent.on"], ["--absent.on", "absent"]),
    ],
    ids=" ".join,
)
def test_mistakes(arguments, parts):
    with pytest.raises(UserError) as refusal:
        read(*arguments)
    assert [part for part in parts if part not in str(refusal.value)] == []


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="^IMAGES is missing; give prog IMAGES. All options: prog --help$"):
        parse(Options, [], "prog")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_names_of_the_arguments_of_their_function(name):
    """Each is declared once: the command line hands them on by name."""
    import inspect
    from importlib import import_module

    command = COMMANDS[name]
    module, _, function = command.function.partition(":")
    options = command.options([])
    example = options.__new__(options)
    for field in options.__dataclass_fields__:
        object.__setattr__(example, field, None)
    inspect.signature(getattr(import_module(module), function)).bind(**command.keywords(example))
