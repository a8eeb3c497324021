"""The small-data recipe at the size of the demo."""

from dataclasses import replace

from selfpatch.config import PretrainConfig
from selfpatch.recipes.small_data import dino_selfpatch_small


def demo() -> PretrainConfig:
    """A few CPU minutes on 1,000 made-up scenes.

    When: to see the whole way in minutes: what selfpatch demo trains with.
    Command: selfpatch demo
    Hardware: two CPU cores.
    """
    config = dino_selfpatch_small()
    return replace(
        config,
        recipe="demo",
        backbone=replace(
            config.backbone, name="vit_tiny_patch16_224", patch_size=8, embed_dim=96, depth=4, num_heads=3
        ),
        crops=replace(config.crops, global_size=48, local_size=24),
        optim=replace(config.optim, steps=500),
    )


def demo_runs() -> dict[str, tuple[str, PretrainConfig]]:
    """What the demo compares, by folder, with its name: the recipe without its patch objective, and the recipe."""
    recipe = demo()
    base = replace(recipe, objectives=replace(recipe.objectives, selfpatch=None))
    return {"base": ("DINO", base), "run": ("DINO + SelfPatch", recipe)}
