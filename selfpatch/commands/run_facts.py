"""Facts from which a recipe derives what it leaves open."""

import math
from dataclasses import replace

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig
from selfpatch.recipes.derive import RunFacts, default_backbone


def run_facts(config: PretrainConfig, num_images: int, device: torch.device) -> RunFacts:
    """Facts about the images, the hardware and the backbone, which is built without memory to ask it.

    Raises:
        UserError: timm has no such backbone, or cannot build it with these settings.
    """
    on_gpu = device.type == "cuda"
    named = replace(config.backbone, name=config.backbone.name or default_backbone(on_gpu=on_gpu))
    with torch.device("meta"):
        backbone = build_backbone(named, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return RunFacts(num_images, on_gpu, patch_size=math.lcm(*backbone.patch_size), embed_dim=backbone.embed_dim)
