"""Arguments as the dataclass that declares them. tyro draws `--help`; mistakes are reported here, in one paragraph.

Values are read by the same code as those of a settings file (config/values.py), and ranges are checked by the
dataclasses, so that a setting is refused in the same words wherever it comes from.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from selfpatch.cli.options import FLAT
from selfpatch.config.io import override
from selfpatch.config.renamed import RENAMED
from selfpatch.config.values import TRUTH, WrongTypeError, allowed, num_words, options, read_words
from selfpatch.errors import UserError

# What can only be an option; a negative number is a value.
LOOKS_LIKE_AN_OPTION = re.compile(r"--?[A-Za-z]")
NEAREST = 0.7  # least similarity of a flag that may have been meant

T = TypeVar("T")


class Option(NamedTuple):
    """One option or positional argument."""

    flag: str  # "--optim.lr", or "IMAGES"
    field: str  # of the dataclass
    setting: str | None  # dotted name in the group that the field holds; None: the field itself
    kind: Any
    missing_group: str | None = None  # the optional group of this setting, if these settings do without

    @property
    def is_switch(self) -> bool:
        return bool in options(self.kind)

    @property
    def negations(self) -> list[str]:
        """The flags that turn a switch off: --no-x; of a group --group.no-x or --no-group.x."""
        group, _, name = self.flag.removeprefix("--").rpartition(".")
        return [f"--{group}.no-{name}", f"--no-{group}.{name}"] if group else [f"--no-{name}"]


def parse(kind: type[T], arguments: Sequence[str], prog: str) -> T:
    """`arguments` as an instance of the dataclass `kind`; prints help and exits if they ask for it.

    A field marked FLAT holds a group of settings, whose default the options change.

    Raises:
        UserError: an unknown, missing or repeated positional argument or option, or a value it cannot have.
    """
    words = list(arguments)
    if any(word in ("-h", "--help") for word in (words[: words.index("--")] if "--" in words else words)):
        tyro.cli(kind, prog=prog, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    declared, positional = declared_options(kind)
    try:
        given, rest = _read_options(words, declared, num_required=len(_required(kind, positional)))
        given |= _read_positional(rest, positional)
        _require_all(kind, given, [*positional, *declared], prog)
    except UserError as error:
        raise UserError(f"{error} All options: {prog} --help") from None
    values = {option.field: value for option, value in given.items() if option.setting is None}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        changes = {o.setting: value for o, value in given.items() if o.field == field.name and o.setting is not None}
        if changes:
            values[field.name] = override(field.default, changes)
    return kind(**values)


def declared_options(kind: type) -> tuple[list[Option], list[Option]]:
    """The options of a dataclass, and its positional arguments."""
    declared, positional = [], []
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        plain, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if FLAT in marks:
            declared += _settings(type(field.default), field.default, field.name)
        elif tyro.conf.Positional in marks:
            positional.append(Option(field.name.upper(), field.name, None, plain))
        else:
            declared.append(Option(f"--{field.name}".replace("_", "-"), field.name, None, plain))
    return declared, positional


def _settings(kind: Any, default: Any, field: str, group: str = "", missing: str | None = None) -> Iterator[Option]:
    """Every setting of a group and the groups in it, those that `default` leaves out marked so."""
    hints = get_type_hints(kind)
    for setting in dataclasses.fields(kind):
        name = f"{group}.{setting.name}".strip(".")
        value = getattr(default, setting.name, None)
        groups = [option for option in options(hints[setting.name]) if dataclasses.is_dataclass(option)]
        if groups:
            is_missing = missing or (name if value is None else None)
            yield from _settings(groups[0], value, field, name, is_missing)
        else:
            yield Option(f"--{name}".replace("_", "-"), field, name, hints[setting.name], missing)


def _read_options(
    words: list[str], declared: list[Option], *, num_required: int
) -> tuple[dict[Option, Any], list[str]]:
    """The options that are given, with their values, and the words that belong to none."""
    by_flag = {option.flag: option for option in declared}
    turned_off = {flag: option for option in declared if option.is_switch for flag in option.negations}
    given: dict[Option, Any] = {}
    rest: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return given, rest + words
        if not LOOKS_LIKE_AN_OPTION.match(word):
            rest.append(word)
            continue
        written, has_value, value = word.partition("=")
        flag = written.replace("_", "-")
        attached = [value] if has_value else []
        if flag in turned_off and flag not in by_flag and not attached:
            given[turned_off[flag]] = False
            continue
        option = by_flag.get(flag)
        if option is None:
            raise UserError(_unknown(flag, by_flag))
        if option.missing_group is not None:
            group = option.missing_group.replace("_", "-")
            adding = f", or add it by --add {group.split('.')[1]}" if group.startswith("objectives.") else ""
            raise UserError(
                f"{flag} has no effect: these settings have no {group}; start from a recipe that has it{adding}."
            )
        following = next((i for i, other in enumerate(words) if LOOKS_LIKE_AN_OPTION.match(other)), len(words))
        following -= max(num_required - len(rest), 0) if None in num_words(option.kind) else 0
        given[option], count = _read_value(option, attached, words[: max(following, 0)])
        del words[:count]
    return given, rest


def _read_value(option: Option, attached: list[str], following: list[str]) -> tuple[Any, int]:
    """The value of an option, and how many of the words after it belong to it."""
    if option.is_switch and not attached:
        is_value = following and following[0].lower() in (*TRUTH, "none", "null")
        return (read_words(option.kind, following[:1]), 1) if is_value else (True, 0)
    words = attached + following
    counts = num_words(option.kind)
    for count in counts:
        taken = words if count is None else words[:count]
        if count is not None and len(taken) < count:
            continue
        try:
            return read_words(option.kind, taken), len(taken) - len(attached)
        except WrongTypeError:
            continue
    allowed_values = f"it must be {allowed(option.kind, none='None')}."
    if not words:
        raise UserError(f"{option.flag} has no value; {allowed_values}")
    shown = " ".join(words if counts[-1] is None else words[: counts[-1]])
    raise UserError(f"{option.flag} is {shown!r}; {allowed_values}")


def _read_positional(words: list[str], positional: list[Option]) -> dict[Option, Any]:
    given: dict[Option, Any] = {}
    for option in positional:
        count = len(words) if None in num_words(option.kind) else 1
        if words:
            try:
                given[option] = read_words(option.kind, words[:count])
            except WrongTypeError:
                raise UserError(
                    f"{option.flag} is {words[0]!r}; it must be {allowed(option.kind, none='None')}."
                ) from None
            words = words[count:]
    if words:
        names = " ".join(option.flag for option in positional)
        raise UserError(f"unexpected argument {words[0]!r}; this command takes {names}, and options.")
    return given


def _require_all(kind: type, given: dict[Option, Any], declared: list[Option], prog: str) -> None:
    if missing := [option.flag for option in _required(kind, declared) if option not in given]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {are} missing; give {prog} {_line(kind)}.")


def _line(kind: type) -> str:
    """The required arguments of a command, as they are typed."""
    declared, positional = declared_options(kind)
    flags = [f"{option.flag} {option.field.upper()}" for option in _required(kind, declared)]
    return " ".join([*(option.flag for option in positional), *flags])


def _required(kind: type, declared: list[Option]) -> list[Option]:
    without_default = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return [option for option in declared if option.setting is None and option.field in without_default]


def _unknown(flag: str, by_flag: dict[str, Option]) -> str:
    today = RENAMED.get(flag.removeprefix("--").replace("-", "_"))
    if today and (new := f"--{today}".replace("_", "-")) in by_flag:
        return f"unknown option {flag}; it is called {new} now."
    similarity = {other: _similarity(flag, other) for other, option in by_flag.items() if option.missing_group is None}
    best = sorted((other for other in similarity if similarity[other] >= NEAREST), key=lambda o: -similarity[o])
    near = [other for other in best[:3] if similarity[other] >= similarity[best[0]] - 0.15]
    return f"unknown option {flag}." + (f" Did you mean {' or '.join(near)}?" if near else "")


def _similarity(flag: str, other: str) -> float:
    """Nearest among whole flags, or among their last parts: --lr is near to --optim.lr."""
    last, other_last = (name.lstrip("-").rpartition(".")[2] for name in (flag, other))
    return max(SequenceMatcher(None, flag, other).ratio(), 0.95 * SequenceMatcher(None, last, other_last).ratio())
