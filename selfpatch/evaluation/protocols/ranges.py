"""Checks that settings of several protocols share."""

from selfpatch.config import check


def check_positive(protocol: object, *names: str) -> None:
    for name in names:
        value = getattr(protocol, name)
        check(value is None or value > 0, f"{name.replace('_', '-')} is {value}; it must be above 0")
