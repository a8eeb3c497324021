"""Files of timm: read as the model that their name says, or by their structure."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.backbones.build import create_timm
from selfpatch.backbones.checkpoints.checkpoint_format import CheckpointFormat, Encoder, Network, TimmModel
from selfpatch.backbones.checkpoints.exported import ARCHITECTURE_ARGUMENTS, check_arguments
from selfpatch.backbones.checkpoints.match import match_tensors
from selfpatch.backbones.checkpoints.vit_structure import infer_vit
from selfpatch.errors import UserError

# Only timm's models have these: norm before the blocks, a classifier, a norm after pooling, pooling by attention, ...
SIGNS = (
    r"norm_pre\..*", r"head\.(weight|bias)", r"fc_norm\..*", r"attn_pool\..*", r"reg_token", r".*\.q_norm\..*",
    r"blocks\.\d+\.attn\.(q_bias|q_proj\.weight)", r"rope\..*",
)  # fmt: skip
# Of timm's model_args: what concerns training or the head alone.
IGNORED_ARGUMENTS = {
    "num_classes", "global_pool", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "fc_norm",
    "pool_include_prefix",
}  # fmt: skip


def is_timm_vit(network: Network) -> bool:
    if network.has(*SIGNS):
        return True
    # Positions of the patches alone, beside a class token: DeiT III, FlexiViT.
    positions, has_class = network.tensors.get("pos_embed"), "cls_token" in network.tensors
    return (
        has_class
        and positions is not None
        and positions.ndim == 3
        and math.isqrt(positions.shape[1]) ** 2 == (positions.shape[1])
    )


def read_timm(network: Network) -> Encoder:
    # Buffers of rotary positions follow from the architecture; `rope.freqs` are learned (RoPE-mixed).
    return Encoder({n: t for n, t in network.tensors.items() if not n.startswith("rope.") or n == "rope.freqs"})


def fit_named(network: Network) -> TimmModel | None:
    """The model that the hints name, if the tensors are exactly its own; None: they are not, and the name is a guess.

    Raises:
        UserError: timm itself wrote the name, and the tensors are another model's.
    """
    hints = network.hints
    assert hints.architecture is not None
    tensors = read_timm(network).tensors
    arguments = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True}
    own = {name: value for name, value in hints.model_args.items() if name not in IGNORED_ARGUMENTS}
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    try:
        check_arguments(own)
        with torch.device("meta"):
            arguments |= own
            model = _create(hints.architecture, arguments, tensors)
            arguments |= _fitting(model, tensors)
            match = match_tensors(tensors, create_timm(hints.architecture, **arguments))
    except UserError as error:
        if hints.is_certain:
            raise UserError(f"{network.file} is timm's {hints.architecture}: {error}") from error
        return None
    if match.is_whole:
        return TimmModel(hints.architecture, arguments, tensors)
    if hints.is_certain:
        raise UserError(
            f"{network.file} is not the {hints.architecture} that its config.json or checkpoint names: {match}. Take "
            "the weights that belong to the name, or move config.json away"
        )
    return None


def _create(name: str, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    if not arguments.keys() <= ARCHITECTURE_ARGUMENTS:
        raise UserError(f"model_args {sorted(arguments.keys() - ARCHITECTURE_ARGUMENTS)} cannot be built")
    return create_timm(name, **arguments)


def _fitting(model: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments for the file's own image size, and for the norm that its head took along."""
    arguments: dict[str, Any] = {}
    positions, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if own is not None and positions is not None and positions.ndim == 3:
        num_prefix = own.shape[1] - model.patch_embed.num_patches
        side = math.isqrt(max(positions.shape[1] - num_prefix, 0))
        if positions.shape[1] != own.shape[1] and side:
            rows, columns = model.patch_embed.patch_size
            arguments["img_size"] = (side * rows, side * columns)
    if "norm.weight" not in tensors and not isinstance(model.norm, nn.Identity):
        is_eva = type(model).__name__ == "Eva"
        arguments |= {"use_post_transformer_norm": False, "use_fc_norm": False} if is_eva else {"final_norm": False}
    return arguments


TIMM = CheckpointFormat("timm", is_timm_vit, read_timm, infer_vit)
