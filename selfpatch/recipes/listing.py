"""`selfpatch recipes`: all recipes with when to use which, or the settings of one with their help."""

from selfpatch.config.io import commented_yaml
from selfpatch.errors import unknown_name
from selfpatch.output.terminal import say
from selfpatch.recipes import DEFAULT_RECIPE, RECIPES


def print_recipes(name: str | None = None) -> None:
    """Print a line per recipe; or the settings of the recipe `name` as a file for `pretrain --config`.

    Raises:
        UserError: there is no such recipe; the nearest one and all others are given.
    """
    if name is None:
        width = max(map(len, RECIPES))
        for recipe in RECIPES:
            say(f"{recipe:{width}}  {when(recipe)}{' (the default)' if recipe == DEFAULT_RECIPE else ''}")
        say(
            "\nselfpatch recipes NAME prints the settings of one, as a file for pretrain --config; methods and "
            "sources: docs/methods.md"
        )
        return
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    say(f"# Recipe {name}: {summary(name)}")
    say(f"# When: {when(name)}")
    say("# null: derived from the images and the hardware, where the setting says so.")
    say(commented_yaml(RECIPES[name]()).rstrip("\n"))


def summary(recipe: str) -> str:
    """The first line of its docstring."""
    return (RECIPES[recipe].__doc__ or "").splitlines()[0]


def when(recipe: str) -> str:
    """When to use it: a line of its docstring."""
    lines = (line.strip() for line in (RECIPES[recipe].__doc__ or "").splitlines())
    return next(line.removeprefix("When: ").rstrip(".") for line in lines if line.startswith("When: "))
