"""SelfPatch, DINO and iBOT: one code base, whose backbone has timm's names."""

import re

from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import IMAGENET, CheckpointFormat, Encoder, Network, rename
from selfpatch.backbones.checkpoints.vit_structure import infer_vit


def is_ibot(network: Network) -> bool:
    # BEiT and EVA scale layers by the same names, and have a bias for queries and values alone.
    is_eva = network.has(r"blocks\.\d+\.attn\.(q_bias|q_proj\.weight)")
    return network.has(r"masked_embed", r"blocks\.\d+\.gamma_1") and not is_eva


def is_selfpatch(network: Network) -> bool:
    """No class token, and the final norm left to the aggregator, which stands beside the backbone or was cut off."""
    return "cls_token" not in network.tensors and not network.has(r"norm\..*", r"fc_norm\..*", r"attn_pool\..*")


def is_dino(network: Network) -> bool:
    """Student and teacher, or the layers of DINO's head beside the backbone."""
    parts = set(network.prefix.split("."))
    return bool(parts & {"student", "teacher"}) or network.has(r"head\.(mlp|last_layer)\..*")


def read_ibot(network: Network) -> Encoder:
    return Encoder(rename(network.tensors, ((r"(.*)\.gamma_([12])", r"\1.ls\2.gamma"),)))


def read_dino(network: Network) -> Encoder:
    tensors = dict(network.tensors)
    sibling = network.prefix.removesuffix("backbone.")
    is_borrowed = False
    for name in ("weight", "bias"):
        tensor = network.file_tensors.get(f"{sibling}ca_head.norm.{name}")
        if tensor is not None and f"norm.{name}" not in tensors:
            tensors[f"norm.{name}"], is_borrowed = tensor, True
    notes = ("the aggregator's norm (ca_head.norm) is its final norm",) if is_borrowed else ()
    return Encoder(tensors, notes=notes, final_norm_from_aggregator=is_borrowed)


IBOT = CheckpointFormat("iBOT", is_ibot, read_ibot, infer_vit, "offset", normalization=IMAGENET)
SELFPATCH = CheckpointFormat("SelfPatch", is_selfpatch, read_dino, infer_vit, "offset", normalization=IMAGENET)
DINO = CheckpointFormat("DINO", is_dino, read_dino, infer_vit, "offset", normalization=IMAGENET)
# DINO cuts its published backbones out of everything that would tell them from others with the same names.
UNKNOWN = CheckpointFormat("DINO", lambda network: True, read_dino, infer_vit, "offset")

# Of a training state, besides the backbones: (their pattern, our replacement). {twin} is "" for the student and
# "teacher_" for the teacher.
TRAINING_STATE = (
    (r"ca_head\.cls_token", r"{network}.aggregator.query"),
    (r"ca_head\.cls_blocks\.(.*)", r"{network}.aggregator.blocks.\1"),
    (r"ca_head\.norm\.(.*)", r"{network}.aggregator.norm.\1"),
    (r"c?_?head\.last_layer\.(.*)", r"objectives.dino.branch.{twin}head.prototypes.\1"),
    (r"c?_?head\.(mlp\..*)", r"objectives.dino.branch.{twin}head.\1"),
    (r"p_head\.last_layer\.(.*)", r"objectives.selfpatch.branch.{twin}head.prototypes.\1"),
    (r"p_head\.(mlp\..*)", r"objectives.selfpatch.branch.{twin}head.\1"),
)
CENTERS = {"center": "dino", "patch_center": "selfpatch"}


def read_training_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Aggregators, heads and centers of a whole training state of DINO or SelfPatch, as `StudentTeacher` names them.

    Empty if it is none: student and teacher must be there, both with heads.

    Args:
        tensors: under the dotted names of the file.
    """
    state = {}
    for name, tensor in tensors.items():
        network, _, rest = name.replace("module.", "").partition(".")
        objective = CENTERS.get(rest if network == "dino_loss" else name)
        if objective is not None:
            state[f"objectives.{objective}.branch.distillation.center"] = tensor.flatten()
        if network not in ("student", "teacher"):
            continue
        twin = "" if network == "student" else "teacher_"
        for pattern, replacement in TRAINING_STATE:
            if match := re.fullmatch(pattern, rest):
                state[match.expand(replacement).format(network=network, twin=twin)] = tensor
                break
    heads = [".branch.head.mlp.0.weight", ".branch.teacher_head.mlp.0.weight"]
    return state if all(any(name.endswith(head) for name in state) for head in heads) else {}
