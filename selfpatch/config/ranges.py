"""Ranges of settings, declared beside the field and checked by one base class when a group of settings is made.

    @dataclass(frozen=True)
    class CropsConfig(Config, group="crops"):
        # probability of a horizontal flip
        hflip_prob: Annotated[float, Probability] = 0.5

A range holds for the number, or for each number of a tuple; None and words such as "auto" are outside of it. No range
has infinity or nan in it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from selfpatch.errors import UserError


class SettingError(UserError):
    """A setting out of range: the full name as the command line has it, the value, and what is allowed."""

    def __init__(self, group: str, setting: str, value: Any, problem: str):
        name = f"{group}.{setting}".strip(".").replace("_", "-")
        super().__init__(
            f"{name} is {value!r}; {problem}" if isinstance(value, str) else f"{name} is {value}; {problem}"
        )
        self.setting, self.value, self.problem = setting, value, problem

    def within(self, group: str) -> "SettingError":
        """The same of a setting that stands in `group`."""
        return SettingError(group, self.setting, self.value, self.problem)


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `at_least` and `at_most` belong to it, `above` and `below` do not."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    noun: str = ""

    def problem(self, value: Any, *, is_whole: bool) -> str | None:
        """The words for a value out of range, None for one in range. `is_whole`: the setting takes whole numbers."""
        is_tuple = isinstance(value, tuple | list)
        numbers = [x for x in (value if is_tuple else [value]) if isinstance(x, int | float)]
        if all(map(self._contains, numbers)):
            return None
        allowed = [] if all(isinstance(x, int) or math.isfinite(x) for x in numbers) else ["finite"]
        if self != Finite:
            allowed.append(self._text(is_whole))
        return f"{'each' if is_tuple else 'it'} must be {' and '.join(allowed)}"

    def _contains(self, number: float) -> bool:
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def _text(self, is_whole: bool) -> str:
        if self.at_most is not None or self.below is not None:
            low = f"[{self.at_least}" if self.at_least is not None else f"({self.above}"
            high = f"{self.at_most}]" if self.at_most is not None else f"{self.below})"
            return f"{self.noun} in {low}, {high}".strip()
        if self.at_least is not None:
            return f"at least {self.at_least}"
        return f"at least {int(self.above or 0) + 1}" if is_whole else f"above {self.above}"


@dataclass(frozen=True)
class Rule:
    """A condition on a whole value, with what is allowed in words; None and words are outside of it."""

    holds: Callable[[Any], bool]
    text: str

    def problem(self, value: Any, *, is_whole: bool) -> str | None:
        return None if value is None or isinstance(value, str) or self.holds(value) else self.text


Finite = Range()
Positive = Range(above=0)
NonNegative = Range(at_least=0)
Probability = Range(at_least=0, at_most=1, noun="a probability")
DropProbability = Range(at_least=0, below=1, noun="a probability")
UnitInterval = Range(at_least=0, at_most=1)
BelowOne = Range(at_least=0, below=1)
Fraction = Range(above=0, at_most=1)
# The training loop draws the random numbers of a step from (seed * 1,000,003 + step) * 4,096 + rank, below 2^63.
Seed = Range(at_least=0, at_most=2**31 - 1)

Ascending = Rule(lambda values: list(values) == sorted(values), "the numbers must be in ascending order")
Distinct = Rule(lambda values: len(set(values)) == len(values), "give each of them once")
NonEmpty = Rule(lambda values: len(values) > 0, "give at least one")
Odd = Rule(lambda number: number >= 3 and number % 2 == 1, "it must be an odd number of at least 3")


class Config:
    """A group of settings: checks the ranges that its fields declare.

    `group` is the dotted name under which the group stands, for messages when it is made by itself. Groups that stand
    in several places get theirs from `config.io`, which knows where.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, *, group: str = "", **arguments: Any):
        super().__init_subclass__(**arguments)
        cls.group = group or cls.group

    def __post_init__(self):
        for setting, is_whole, rules in _rules(type(self)):
            value = getattr(self, setting)
            for rule in rules:
                if problem := rule.problem(value, is_whole=is_whole):
                    raise SettingError(self.group, setting, value, problem)

    def require(self, condition: bool, setting: str, problem: str) -> None:
        """Check what settings must have in common; `problem` says what `setting` must be beside the others."""
        if not condition:
            raise SettingError(self.group, setting, getattr(self, setting), problem)


@cache
def _rules(kind: type) -> list[tuple[str, bool, list[Range | Rule]]]:
    """Every field that has rules, in order: its name, whether it takes whole numbers only, and the rules."""
    hints = get_type_hints(kind, include_extras=True)
    annotated = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
    rules = {name: [m for m in metadata if isinstance(m, Range | Rule)] for name, (_, *metadata) in annotated.items()}
    return [(name, not _takes_float(annotated[name][0]), found) for name, found in rules.items() if found]


def _takes_float(hint: Any) -> bool:
    return hint is float or any(map(_takes_float, get_args(hint)))
