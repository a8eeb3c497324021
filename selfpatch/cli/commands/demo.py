"""Options of `selfpatch demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from selfpatch.cli.command import Command
from selfpatch.cli.options import Out
from selfpatch.config.ranges import Config, Seed


@dataclass(frozen=True)
class Demo(Config):
    """Make up scenes, train a tiny vision transformer on them for a few CPU minutes, and show what it learned."""

    out: Out = Path("selfpatch-demo")
    # seed of all random numbers
    seed: Annotated[int, Seed] = 0


COMMAND = Command(
    "a few CPU minutes on made-up scenes: train, score, pictures, table", lambda _: Demo, "selfpatch.demo.tour:demo"
)
