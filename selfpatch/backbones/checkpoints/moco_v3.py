"""MoCo-v3: the base encoder, fixed positions of sines and cosines, 12 attention heads in ViT-S."""

from selfpatch.backbones.checkpoints.checkpoint_format import IMAGENET, CheckpointFormat, Encoder, Network
from selfpatch.backbones.checkpoints.fixed_positions import find_fixed_positions
from selfpatch.backbones.checkpoints.vit_structure import infer_vit

NETWORKS = {"base_encoder", "momentum_encoder"}
# Source: facebookresearch/moco-v3 vits.py, vit_small.
NUM_HEADS = {384: 12}


def is_moco_v3(network: Network) -> bool:
    return bool(NETWORKS & set(network.prefix.split("."))) or find_fixed_positions(network.tensors) == "row first"


def read_moco_v3(network: Network) -> Encoder:
    weight = network.tensors["patch_embed.proj.weight"]
    notes = ("12 attention heads of 32 channels, as MoCo-v3's ViT-S has",) if len(weight) == 384 else ()
    return Encoder(network.tensors, notes=notes)


# It knows one image size; timm, which it is built on, resamples when others load it.
MOCO_V3 = CheckpointFormat("MoCo-v3", is_moco_v3, read_moco_v3, infer_vit, num_heads=NUM_HEADS, normalization=IMAGENET)
