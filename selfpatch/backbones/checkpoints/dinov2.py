"""DINOv2: layer scale, blocks in chunks while it trains, SwiGLU for the largest, registers without positions."""

import math

from selfpatch.backbones.checkpoints.checkpoint_format import (
    IMAGENET,
    CheckpointFormat,
    Encoder,
    Names,
    Network,
    rename,
)
from selfpatch.backbones.checkpoints.vit_structure import PATCH_WEIGHT, infer_vit

NAMES: Names = (
    (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),  # blocks in chunks, numbered through
    (r"(.*)\.mlp\.w12\.(.*)", r"\1.mlp.fc1.\2"),  # SwiGLU: gate and value in one layer
    (r"(.*)\.mlp\.w3\.(.*)", r"\1.mlp.fc2.\2"),
    (r"register_tokens", r"reg_token"),
)


def is_dinov2(network: Network) -> bool:
    if network.has(r"register_tokens", r"blocks\.\d+\.\d+\..*"):
        return True
    if not network.has(r"blocks\.\d+\.ls1\..*"):
        return False
    if network.has(r"mask_token"):
        return True
    # timm's copy has no mask token; other models with layer scale have other patches, or positions for patches alone.
    weight, positions = network.tensors.get(PATCH_WEIGHT), network.tensors.get("pos_embed")
    if weight is None or positions is None or positions.ndim != 3 or weight.shape[-1] != 14:
        return False
    return "reg_token" in network.tensors or math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]


def read_dinov2(network: Network) -> Encoder:
    return Encoder(rename(network.tensors, NAMES))


DINOV2 = CheckpointFormat("DINOv2", is_dinov2, read_dinov2, infer_vit, "offset", normalization=IMAGENET)
