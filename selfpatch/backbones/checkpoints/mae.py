"""MAE and I-JEPA: encoders with fixed positions of sines and cosines, the column first; a decoder stays behind."""

from selfpatch.backbones.checkpoints.checkpoint_format import IMAGENET, CheckpointFormat, Encoder, Network
from selfpatch.backbones.checkpoints.fixed_positions import find_fixed_positions
from selfpatch.backbones.checkpoints.vit_structure import infer_vit


def is_mae(network: Network) -> bool:
    return find_fixed_positions(network.tensors) == "column first" or network.has(r"decoder_(embed|blocks|pos_embed).*")


def is_ijepa(network: Network) -> bool:
    return is_mae(network) and "cls_token" not in network.tensors


def read_mae(network: Network) -> Encoder:
    weight = network.tensors["patch_embed.proj.weight"]
    notes = ()
    if len(weight) == 384:
        notes = ("MAE published no ViT-S: 6 attention heads are assumed, as most have (--num-heads says otherwise)",)
    return Encoder(network.tensors, notes=notes)


IJEPA = CheckpointFormat("I-JEPA", is_ijepa, read_mae, infer_vit, normalization=IMAGENET)
MAE = CheckpointFormat("MAE", is_mae, read_mae, infer_vit, normalization=IMAGENET)
