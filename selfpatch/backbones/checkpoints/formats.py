"""The table of checkpoint formats, and a checkpoint in timm's terms.

All train the same transformer. They differ in where it is in the file, in some names, in the number of attention heads,
which leaves no trace in shapes, in how positions follow the image size, and in how images were normalized.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from selfpatch.backbones.checkpoints import clip, dino, dinov2, dinov3, huggingface, mae, moco_v3, timm_files
from selfpatch.backbones.checkpoints.checkpoint_format import IMAGENET, NUM_HEADS, CheckpointFormat, Encoder, Network
from selfpatch.backbones.checkpoints.networks import PATCH_WEIGHTS, choose_network, find_networks, unwrap
from selfpatch.backbones.checkpoints.sidecar import Normalization, read_hints
from selfpatch.backbones.checkpoints.torchvision_vit import TORCHVISION
from selfpatch.backbones.checkpoints.weights_io import Checkpoint
from selfpatch.errors import UserError

# The first that matches counts.
FORMATS: tuple[CheckpointFormat, ...] = (
    dinov3.META_DINOV3,
    dinov3.HUGGING_FACE_DINOV3,
    dinov3.TIMM_DINOV3,
    huggingface.HUGGING_FACE_DINOV2,
    huggingface.HUGGING_FACE,
    clip.SIGLIP,
    clip.HUGGING_FACE_CLIP,
    clip.OPENAI_CLIP,
    clip.OPEN_CLIP,
    TORCHVISION,
    moco_v3.MOCO_V3,
    mae.IJEPA,
    mae.MAE,
    dinov2.DINOV2,
    dino.IBOT,
    timm_files.TIMM,
    dino.SELFPATCH,
    dino.DINO,
    dino.UNKNOWN,
)
# Those whose structure alone does not say whose weights they are; a name of timm's is then followed.
OPEN = (timm_files.TIMM, dino.UNKNOWN)


class ConvertedCheckpoint(NamedTuple):
    """A checkpoint in timm's terms.

    Args:
        name, arguments: what `timm.create_model` needs.
        tensors: of the backbone, and whatever else is beside them in the file.
        norm_eps: of its norms; None: as timm builds them.
    """

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    pos_embed_interpolation: str
    normalization: Normalization
    norm_eps: float | None
    notes: tuple[str, ...]
    final_norm_from_aggregator: bool


def convert_checkpoint(
    file: Path,
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    network: str | None = None,
    normalization: Normalization | None = None,
) -> ConvertedCheckpoint:
    """
    Args:
        num_heads: None: known from the file, or from the width.
        network: prefix of the network to read; None: the one that its authors evaluate.
        normalization: what the user says of it.

    Raises:
        UserError: no vision transformer of these formats, or something that the file leaves open.
    """
    # 1. Which network, and whose.
    found = find_network(file, checkpoint, network)
    format_ = next(format_ for format_ in FORMATS if format_.matches(found.network))
    notes = list(found.notes)

    # 2. Names and architecture: timm's own if a name of timm's fits exactly, else by the tensors.
    hints, encoder, model = found.network.hints, Encoder({}), None
    is_open = hints.is_certain or format_ in OPEN or (hints.tag is not None and format_ is dinov2.DINOV2)
    if hints.architecture and is_open and "patch_embed.proj.weight" in found.network.tensors:
        model = timm_files.fit_named(found.network, num_heads)
    pos_embed_interpolation = "antialias"
    if model is not None:
        notes += [f"read as timm's {model.name}", *timm_files.timm_notes(hints)]
    else:
        if format_ is not dino.UNKNOWN:
            notes.append(f"read as {format_.name}")
        encoder = format_.read(found.network)
        model = format_.infer(file, encoder, NUM_HEADS | dict(format_.num_heads), num_heads)
        # Registers came with another interpolation: bicubic and antialiased to the size itself, as timm's (DINOv2's hub
        # sets interpolate_antialias for these).
        pos_embed_interpolation = "antialias" if "reg_tokens" in model.arguments else format_.pos_embed_interpolation
    notes += encoder.notes
    if not any(name.startswith("norm.") for name in model.tensors):
        pooled = "; its norm comes after pooling (fc_norm)" if "fc_norm.weight" in model.tensors else ""
        notes.append(f"no final norm in the file: patch tokens come without one{pooled}")

    # 3. Normalization.
    # A name that was found in a path is a weaker sign than the program that made the file.
    stated = hints.normalization if hints.is_stated else None
    known = normalization or stated or format_.normalization or hints.normalization
    if known is None:
        notes.append(
            "how its images were normalized is not in the file: ImageNet's mean and std are assumed (--mean and --std "
            "say otherwise)"
        )
    elif normalization is None and known != IMAGENET:
        source = hints.normalization_source if known == hints.normalization else format_.name
        notes.append(f"images are normalized by mean {known.mean}, std {known.std} ({source})")
    return ConvertedCheckpoint(
        model.name,
        model.arguments,
        model.tensors,
        pos_embed_interpolation,
        known or IMAGENET,
        encoder.norm_eps,
        tuple(notes),
        encoder.final_norm_from_aggregator,
    )


class FoundNetwork(NamedTuple):
    """A network of a file, and notes on where it is."""

    network: Network
    notes: tuple[str, ...]


def find_network(file: Path, checkpoint: Checkpoint, network: str | None) -> FoundNetwork:
    """
    Raises:
        UserError: none, or several of which nothing says which counts.
    """
    tensors = unwrap(checkpoint.tensors)
    prefixes = find_networks(tensors)
    if not prefixes:
        known = ", ".join(dict.fromkeys(format_.name for format_ in FORMATS))
        raise UserError(
            f"{file} holds no vision transformer of a known layout ({known}): "
            f"{' or '.join(PATCH_WEIGHTS)} is sought; it has {', '.join(list(tensors)[:5]) or 'no tensors'}"
        )
    prefix, choice = choose_network(file, prefixes, network)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    notes = (f"{prefix.removesuffix('.')} of the checkpoint{f': {choice}' if choice else ''}",) if prefix else ()
    if not prefix and choice:
        notes = (f"the network without a prefix: {choice}",)
    return FoundNetwork(Network(file, prefix, own, tensors, read_hints(file, checkpoint.values)), notes)
