"""Options of `selfpatch watch`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command
from selfpatch.config.ranges import Range


@dataclass(frozen=True)
class Watch:
    """Serve the page of a run or a study on this machine; it renews itself while the run trains. Ctrl-C ends it."""

    out: Annotated[Positional[Path], arg(metavar="OUT", help="the folder of a run or a study")]
    # address to listen at; any other than this machine's own lets others on the network read the page
    host: str = "127.0.0.1"
    # port to listen at; 0: one that is free
    port: Annotated[int, Range(at_least=0, at_most=65535)] = 0


COMMAND = Command(
    "serve the page of a run or a study while it trains", lambda _: Watch, "selfpatch.commands.report.watch:watch"
)
