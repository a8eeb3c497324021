"""The names of the authors' released code (alinlab/SelfPatch), and ours: for whole training states, heads and all."""

import re

from torch import Tensor

from selfpatch.errors import UserError

# (their pattern, our replacement), the first match counts; {0} is "" for the student and "teacher_" for the teacher.
_NETWORK = (
    (r"backbone\.(.*)", r"{network}.backbone.model.\1"),
    (r"ca_head\.cls_token", r"{network}.aggregator.query"),
    (r"ca_head\.cls_blocks\.(.*)", r"{network}.aggregator.blocks.\1"),
    (r"ca_head\.norm\.(.*)", r"{network}.aggregator.norm.\1"),
    (r"c_head\.last_layer\.(.*)", r"objectives.dino.branch.{twin}head.prototypes.\1"),
    (r"c_head\.(.*)", r"objectives.dino.branch.{twin}head.\1"),
    (r"p_head\.last_layer\.(.*)", r"objectives.selfpatch.branch.{twin}head.prototypes.\1"),
    (r"p_head\.(.*)", r"objectives.selfpatch.branch.{twin}head.\1"),
)


def convert_training_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Student, teacher and centres under `StudentTeacher`'s names, for a `load_state_dict` that misses nothing.

    Names may stand behind the `module.` that DistributedDataParallel writes.

    Raises:
        UserError: a name that the authors' code does not write.
    """
    converted = {}
    for name, tensor in tensors.items():
        name = name.replace("module.", "")
        if name in ("center", "patch_center"):
            term = "dino" if name == "center" else "selfpatch"
            converted[f"objectives.{term}.branch.distillation.center"] = tensor.flatten()
        else:
            converted[_convert(name)] = tensor
    return converted


def _convert(name: str) -> str:
    network, _, rest = name.partition(".")
    if network in ("student", "teacher"):
        twin = "" if network == "student" else "teacher_"
        for pattern, replacement in _NETWORK:
            if match := re.fullmatch(pattern, rest):
                return match.expand(replacement).format(network=network, twin=twin)
    raise UserError(f"{name!r} is no name of an original SelfPatch training state; only those can be converted")
