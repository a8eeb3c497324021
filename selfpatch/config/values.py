"""Values of settings by their annotated types: from YAML, from words of the command line, and in words for messages."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
TRUTH = {"true": True, "false": False}


class WrongTypeError(Exception):
    """A value is not of the type that a setting has."""


def options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(kind) is Annotated:
        return options(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def allowed(kind: Any, *, none: str = "null") -> str:
    """Name the values that a setting of a type may have, all options of a union: "auto, a whole number or null"."""
    words = [word for option in options(kind) for word in _words(option, none)]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _words(kind: Any, none: str) -> list[str]:
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        if rest == [...]:
            return [f"a list, each {allowed(first, none=none)}"]
        return [f"{len(rest) + 1} {'whole ' if first is int else ''}numbers"]
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return [none if kind is NoneType else names.get(kind, "a group of settings")]


def read_value(kind: Any, value: Any) -> Any:
    """`value`, as YAML, JSON or Python has it, as a plain type, a Literal, a Path, a tuple, or a union of those.

    A number may be text, as YAML takes 5e-4 for text; a whole number may be written as 1e3.

    Raises:
        WrongTypeError: it is none of them.
    """
    return _first_that_reads(options(kind), lambda option: _read_one(option, value))


def _read_one(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is NoneType and value is None:
        return None
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(read_value(k, v) for k, v in zip(kinds, value, strict=True))
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind in (int, float):
        return _number(kind, value)
    if kind in (str, bool) and type(value) is kind:
        return value
    raise WrongTypeError


def _number(kind: type, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise WrongTypeError
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        raise WrongTypeError
    if kind is int and isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,100}", value):
        return int(value)
    try:
        number = float(value)
    except OverflowError:
        raise WrongTypeError from None
    if kind is float:
        return number
    if not number.is_integer():
        raise WrongTypeError
    return value if isinstance(value, int) else int(number)


def read_words(kind: Any, words: Sequence[str]) -> Any:
    """The words after an option of the command line as a value.

    Raises:
        WrongTypeError: they are no value of this type.
    """
    # A word of a Literal is that word, be it "none"; and "None" is no text.
    kinds = sorted(
        options(kind), key=lambda option: 0 if get_origin(option) is Literal else 1 if option is NoneType else 2
    )
    return _first_that_reads(kinds, lambda option: _read_words_as(option, list(words)))


def _read_words_as(kind: Any, words: list[str]) -> Any:
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        kinds = [arguments[0]] * len(words) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(words):
            raise WrongTypeError
        return tuple(read_words(k, [word]) for k, word in zip(kinds, words, strict=True))
    if len(words) != 1:
        raise WrongTypeError
    word = words[0]
    if kind is NoneType and word.lower() in ("none", "null"):
        return None
    if kind is bool and word.lower() in TRUTH:
        return TRUTH[word.lower()]
    if get_origin(kind) is Literal:
        word = next((option for option in arguments if str(option) == word), word)
    if kind in (NoneType, bool):
        raise WrongTypeError
    return read_value(kind, word)


def num_words(kind: Any) -> list[int | None]:
    """Possible numbers of words on the command line for one value, most first; None: any number."""
    counts: set[int | None] = set()
    for option in options(kind):
        if get_origin(option) is tuple:
            arguments = get_args(option)
            counts.add(None if arguments[1:] == (...,) else len(arguments))
        else:
            counts.add(1)
    return sorted(counts, key=lambda count: -math.inf if count is None else -count)


def _first_that_reads(kinds: Sequence[Any], read: Callable[[Any], Any]) -> Any:
    for kind in kinds:
        try:
            return read(kind)
        except WrongTypeError:
            continue
    raise WrongTypeError
