"""Files of timm: read as the model that their name says, or by their structure."""

import math
from typing import Any

import timm
from timm.models.eva import Eva
from torch import Tensor, nn

from selfpatch.backbones.build import any_size_arguments, create_timm, is_swin
from selfpatch.backbones.checkpoints.checkpoint_format import NUM_HEADS, CheckpointFormat, Encoder, Network, TimmModel
from selfpatch.backbones.checkpoints.exported import check_arguments
from selfpatch.backbones.checkpoints.match import Match, match_tensors
from selfpatch.backbones.checkpoints.sidecar import Hints
from selfpatch.backbones.checkpoints.vit_structure import PATCH_WEIGHT, choose_num_heads, infer_vit
from selfpatch.backbones.without_values import without_values
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
    tensors = {n: t for n, t in network.tensors.items() if not n.startswith("rope.") or n == "rope.freqs"}
    notes = (
        "GELU is assumed: SigLIP's so400m and its second version have an approximation of it by tanh, 5e-4 apart; "
        "timm's name of the model as the name of the file says which",
    )
    return Encoder(tensors, notes=notes if network.has(r"attn_pool\.latent") else ())


def fit_named(network: Network, num_heads: int | None) -> TimmModel | None:
    """The model that the hints name, of any size, if the tensors are exactly its own; None: the name was a wrong guess.

    Raises:
        UserError: timm itself wrote the name, and the tensors are another model's.
    """
    hints = network.hints
    assert hints.architecture is not None
    tensors = read_timm(network).tensors
    own = {name: value for name, value in hints.model_args.items() if name not in IGNORED_ARGUMENTS}
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    arguments = any_size_arguments(hints.architecture) | own
    try:
        check_arguments(own)
        fitted, match = _fit(hints.architecture, arguments, tensors)
        for sizes in [] if match.is_whole else _sizes(network, tensors, own, num_heads):
            fitted, match = _fit(hints.architecture, arguments | sizes, tensors)
            if match.is_whole:
                break
    except UserError as error:
        if hints.is_certain:
            raise UserError(f"{network.file}, timm's {hints.architecture} by its own account: {error}") from error
        return None
    if match.is_whole:
        return TimmModel(hints.architecture, fitted, tensors)
    if hints.is_certain:
        raise UserError(
            f"{network.file} is not the {hints.architecture} that its config.json or checkpoint names: {match}. Take "
            "the weights that belong to the name, or move config.json away"
        )
    return None


def timm_notes(hints: Hints) -> tuple[str, ...]:
    """timm's notes on these weights, such as a name whose activation is not the one of their training (CLIP)."""
    config = timm.get_pretrained_cfg(f"{hints.architecture}.{hints.tag}") if hints.tag else None
    if config is None or "quickgelu" in str(hints.architecture):
        return ()
    return tuple(f"timm notes of {hints.architecture}.{hints.tag}: {note}" for note in config.notes or ())


def _fit(name: str, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Match]:
    """Arguments for the file's own image size, and for a norm that went into the head; how its tensors match then."""
    with without_values():
        model: Any = create_timm(name, **arguments)
    positions, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if own is not None and positions is not None and positions.ndim == 3:
        num_prefix = own.shape[1] - model.patch_embed.num_patches
        side = math.isqrt(max(positions.shape[1] - num_prefix, 0))
        if positions.shape[1] != own.shape[1] and side:
            rows, columns = model.patch_embed.patch_size
            arguments = arguments | {"img_size": (side * rows, side * columns)}
    if "norm.weight" not in tensors and not isinstance(model.norm, nn.Identity) and not is_swin(name):
        without = {"use_post_transformer_norm": False, "use_fc_norm": False}
        arguments = arguments | (without if isinstance(model, Eva) else {"final_norm": False})
    with without_values():
        return arguments, match_tensors(tensors, create_timm(name, **arguments))


def _sizes(
    network: Network, tensors: dict[str, Tensor], own: dict[str, Any], num_heads: int | None
) -> list[dict[str, Any]]:
    """Width, depth and patches of the file, where they are not those of the name; several, for gated feed-forwards."""
    weight, fc2 = tensors[PATCH_WEIGHT], tensors.get("blocks.0.mlp.fc2.weight")
    if weight.ndim != 4 or not weight.numel():
        raise UserError(f"patches of {tuple(weight.shape)} are none")
    sizes = {
        "embed_dim": len(weight),
        "patch_size": tuple(weight.shape[2:]),
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": choose_num_heads(network.file, len(weight), own.get("num_heads"), NUM_HEADS, num_heads),
    }
    check_arguments(sizes)
    # The ratio of the name, else that of one of the two layers; timm rounds down.
    fc1 = tensors.get("blocks.0.mlp.fc1.weight")
    widths = [len(fc1)] if fc1 is not None else []
    widths += [fc2.shape[1]] if fc2 is not None and fc2.ndim == 2 else []
    return [sizes, *(sizes | {"mlp_ratio": (width + 0.5) / len(weight)} for width in widths)]


TIMM = CheckpointFormat("timm", is_timm_vit, read_timm, infer_vit)
