"""Options of `selfpatch show`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command


@dataclass(frozen=True)
class Show:
    """Show a run: its state, settings that differ from its recipe, last and best scores, health, how to load it."""

    run: Annotated[Positional[Path], arg(metavar="RUN", help="the folder of a run")]


COMMAND = Command("show state, settings, scores and health of a run", lambda _: Show, "selfpatch.commands.show:show")
