"""A few CPU minutes on made-up scenes."""

from dataclasses import replace

from selfpatch.config import PretrainConfig
from selfpatch.recipes.small_data import dino_selfpatch_small


def demo() -> PretrainConfig:
    config = dino_selfpatch_small()
    return replace(
        config,
        recipe="demo",
        backbone=replace(config.backbone, name="vit_tiny_patch16_224", patch_size=8, embed_dim=128, depth=4, num_heads=4),
        crops=replace(config.crops, global_size=64, local_size=32, num_local=2),
        optim=replace(config.optim, batch_size=32, steps=100),
    )
