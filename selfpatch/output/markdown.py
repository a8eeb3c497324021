"""Tables in Markdown, and the numbers in their cells."""

import statistics
from collections.abc import Sequence


def as_markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head; all columns but the first are numbers."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, in %; empty where there are none."""
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def with_interval(difference: float, low: float | None, high: float | None) -> str:
    """A difference of fractions in points, with its interval if there is one: "+2.1 [+1.4, +2.8]"."""
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * difference:+.1f}{interval}"
