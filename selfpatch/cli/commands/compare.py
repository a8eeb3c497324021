"""Options of `selfpatch compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command


@dataclass(frozen=True)
class Compare:
    """Put results of several models and tasks into one table, one row per model; two protocols never share a column."""

    results: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            metavar="RESULTS",
            help="result.json files, or folders that have some below them",
            help_behavior_hint="(required)",
        ),
    ]
    # metrics to show; "all": every one
    metrics: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: the headline of every task)")] = ()
    # give each protocol of a task its own columns, instead of refusing a second one
    split_protocols: bool = False
    # file to write to: .html (a page with bars by class), .md or .csv (the table); None: no file
    out: Path | None = None


COMMAND = Command(
    "put results of several models and tasks into one table", lambda _: Compare, "selfpatch.commands.compare:compare"
)
