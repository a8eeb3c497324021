"""Networks of a checkpoint: where they are, and which of several is read."""

import re
from pathlib import Path

from torch import Tensor

from selfpatch.errors import UserError

# A network is wherever one of these is: timm's and Meta's, Hugging Face's, CLIP's, torchvision's patch embedding.
PATCH_WEIGHTS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
    "conv_proj.weight",
)
# A ResNet has one of this name too; a CLIP transformer has a class embedding beside it.
CLIP_PATCH_WEIGHT, CLIP_CLASS = "conv1.weight", "class_embedding"
# Left in names by torch.compile, FSDP and activation checkpointing, also within a network.
WRAPPERS = r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"

# (the network that is read, its sibling, why): by one part of their prefixes. The averaged one, where its authors
# evaluate that one.
EVALUATED = (
    (r"teacher(_.*)?", r"student(_.*)?", "the averaged network, which DINO, iBOT, DINOv2 and SelfPatch evaluate"),
    (r"(.*_)?ema(_.*)?", r"model|module|state_dict|network|net", "the averaged network, which timm evaluates"),
    (r"target_encoder", r"encoder|context_encoder", "the averaged network, which I-JEPA evaluates"),
    (r"base_encoder", r"momentum_encoder", "not the averaged network: MoCo-v3 evaluates the base encoder"),
    (r"encoder_q", r"encoder_k", "not the averaged network: MoCo evaluates the query encoder"),
    (r"online(_.*)?", r"target(_.*)?", "not the averaged network: BYOL evaluates the online network"),
    (r"encoder", r"encoder_k", "not the averaged network: MoBY evaluates the online encoder"),
)


def unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the parts that torch's wrappers put into them."""
    return {re.sub(WRAPPERS, "", name).removeprefix("."): tensor for name, tensor in tensors.items()}


def find_networks(tensors: dict[str, Tensor]) -> list[str]:
    """The prefix of every vision transformer, such as "teacher.module.backbone."; "" where names have none."""
    prefixes: dict[str, None] = {}
    for name in tensors:
        for weight in PATCH_WEIGHTS:
            if f".{name}".endswith(f".{weight}"):
                prefixes[name.removesuffix(weight)] = None
        if f".{name}".endswith(f".{CLIP_PATCH_WEIGHT}"):
            prefix = name.removesuffix(CLIP_PATCH_WEIGHT)
            if f"{prefix}{CLIP_CLASS}" in tensors:
                prefixes[prefix] = None
    return list(prefixes)


def choose_network(file: Path, prefixes: list[str], network: str | None) -> tuple[str, str | None]:
    """The prefix of the network to read, and a note on the choice, if there was one.

    Args:
        network: the prefix, or parts of it, that the user asked for.

    Raises:
        UserError: `network` fits none or several, or there are several and nothing says which counts.
    """
    names = ", ".join(prefix.removesuffix(".") or "(no prefix)" for prefix in prefixes)
    if network is not None:
        chosen = [p for p in prefixes if p.removesuffix(".") == network.removesuffix(".")]
        chosen = chosen or [p for p in prefixes if f".{network.strip('.')}." in f".{p}"]
        if len(chosen) != 1:
            raise UserError(
                f"{file} has {'no' if not chosen else 'more than one'} network {network!r}; its networks are: {names}. "
                "Give one of these as the network (--network)"
            )
        return chosen[0], "the network asked for" if len(prefixes) > 1 else None
    if len(prefixes) == 1:
        return prefixes[0], None

    found = {}
    for evaluated, sibling, reason in EVALUATED:
        ours = [p for p in prefixes if _has_part(p, evaluated)]
        others = [p for p in prefixes if p not in ours and _has_part(p, sibling)]
        if ours and others:
            found |= dict.fromkeys(ours, reason)
    if len(found) != 1:
        raise UserError(
            f"{file} holds {len(prefixes)} networks, and nothing says which its authors evaluate: {names}. Give one of "
            "these as the network (--network)"
        )
    ((chosen_prefix, reason),) = found.items()
    others = ", ".join(p.removesuffix(".") or "(no prefix)" for p in prefixes if p != chosen_prefix)
    return chosen_prefix, f"{reason} (--network reads another: {others})"


def _has_part(prefix: str, pattern: str) -> bool:
    return any(re.fullmatch(pattern, part) for part in prefix.split("."))
