"""Options of `selfpatch recipes`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command


@dataclass(frozen=True)
class Recipes:
    """List all recipes with when to use which; or print the settings of one, each with its help, as a settings file."""

    name: Annotated[
        Positional[str | None],
        arg(metavar="NAME", help="recipe whose settings to print, for pretrain --config; None: the list of all"),
    ] = None


COMMAND = Command("list recipes with when to use which", lambda _: Recipes, "selfpatch.recipes.listing:print_recipes")
