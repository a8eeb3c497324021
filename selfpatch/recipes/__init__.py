"""A recipe is a function that returns the settings of a run; its docstring says what it costs and what it reaches.

Settings that a recipe leaves at None are derived from the images and the hardware (see derive.py).
"""

from collections.abc import Callable

from selfpatch.config import PretrainConfig
from selfpatch.errors import unknown_name
from selfpatch.recipes.add_objectives import add_objectives
from selfpatch.recipes.continue_from import CONTINUE_RECIPES
from selfpatch.recipes.demo import demo
from selfpatch.recipes.dino import dino, dino_koleo, dino_selfpatch
from selfpatch.recipes.dinov2 import dinov2, dinov2_small
from selfpatch.recipes.ibot import ibot, ibot_gram, ibot_two_heads
from selfpatch.recipes.moby import moby, moby_selfpatch
from selfpatch.recipes.moco_v3 import moco_v3, moco_v3_selfpatch
from selfpatch.recipes.small_data import dino_ibot_small, dino_neco_small, dino_selfpatch_small, dino_small

__all__ = ["DEFAULT_RECIPE", "RECIPES", "add_objectives", "find_recipe", "recommended_recipe"]

RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "dino": dino,
    "dino-selfpatch": dino_selfpatch,
    "dino-koleo": dino_koleo,
    "ibot": ibot,
    "ibot-gram": ibot_gram,
    "ibot-two-heads": ibot_two_heads,
    "dinov2": dinov2,
    "moco-v3": moco_v3,
    "moco-v3-selfpatch": moco_v3_selfpatch,
    "moby": moby,
    "moby-selfpatch": moby_selfpatch,
    "dino-small": dino_small,
    "dino-selfpatch-small": dino_selfpatch_small,
    "dino-ibot-small": dino_ibot_small,
    "dino-neco-small": dino_neco_small,
    **CONTINUE_RECIPES,
    "dinov2-small": dinov2_small,
    "demo": demo,
}


DEFAULT_RECIPE = PretrainConfig.recipe
# Up to so many images the small-data recipe is recommended.
SMALL_DATA = 100_000


def recommended_recipe(num_images: int) -> str:
    return "dino-selfpatch-small" if num_images <= SMALL_DATA else "dino-selfpatch"


def find_recipe(name: str) -> PretrainConfig:
    """The settings of a recipe.

    Raises:
        UserError: an unknown name; the nearest one and all others are given.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
