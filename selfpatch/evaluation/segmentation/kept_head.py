"""A trained segmentation head and its backbone, to be kept in a folder and to predict the classes of other images.

FOLDER/backbone.safetensors  the backbone, which the caller writes: fine-tuned for a decoder, as it was for a layer
FOLDER/head.safetensors      the head; its metadata say which, by which settings, and the names of the classes
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.checkpoints.weights_io import read_metadata
from selfpatch.config.io import from_dict, to_dict
from selfpatch.errors import UserError
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet
from selfpatch.evaluation.segmentation.linear_segmentation import LinearHead, crop_size, linear_logits
from selfpatch.evaluation.segmentation.segmentation_scores import network_input, upsampled_argmax
from selfpatch.evaluation.segmentation.semantic_segmentation import Segmenter, decoder_logits, semantic_fpn, upernet
from selfpatch.evaluation.task import TrainedHead
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.versions import installed_version

BACKBONE_FILE, HEAD_FILE, FORMAT_KEY = "backbone.safetensors", "head.safetensors", "head_format"
FORMAT_VERSION = "1"
PROTOCOLS: dict[str, Any] = {"linear-segmentation": LinearSegmentation, "semantic-fpn": SemanticFPN, "upernet": UPerNet}
DECODERS: dict[str, Any] = {"semantic-fpn": semantic_fpn, "upernet": upernet}
# Parts of a segmenter that predictions need besides the backbone.
DECODER_PARTS = ("neck.", "head.")


class KeptHead(NamedTuple):
    """What a head's file says."""

    task: str
    protocol: Any
    class_names: list[str]
    pos_embed_interpolation: str


def require_keepable(task: str, protocol: Any) -> None:
    """
    Raises:
        UserError: the task trains no head that can be kept.
    """
    if not isinstance(protocol, PROTOCOLS.get(task, ())):
        name = f"{task} by {type(protocol).__name__}" if task in PROTOCOLS else task
        raise UserError(
            f"--keep-head keeps the heads of {', '.join(PROTOCOLS)} (but for the preset leopart), not of {name}; "
            "leave it out, or choose one of these tasks"
        )


def save_head(trained: TrainedHead, folder: Path) -> None:
    """Write `folder`/head.safetensors, whole or not at all."""
    tensors = trained.module.state_dict()
    if isinstance(trained.module, Segmenter):
        tensors = {name: value for name, value in tensors.items() if name.startswith(DECODER_PARTS)}
    description = {
        FORMAT_KEY: FORMAT_VERSION,
        "selfpatch_version": installed_version("selfpatch"),
        "task": trained.task,
        "protocol": json.dumps(to_dict(trained.protocol)),
        "class_names": json.dumps(trained.class_names),
        "pos_embed_interpolation": trained.backbone.pos_embed_interpolation,
    }
    with atomic_write(folder / HEAD_FILE) as file:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file, description)


def read_head(folder: Path) -> KeptHead:
    """What `folder`/head.safetensors is.

    Raises:
        UserError: it is damaged, of a newer version, or something else.
    """
    file = folder / HEAD_FILE
    metadata = read_metadata(file)
    if metadata.get(FORMAT_KEY) != FORMAT_VERSION or metadata.get("task") not in PROTOCOLS:
        raise UserError(
            f"{file} is no head that this version knows (its format is {metadata.get(FORMAT_KEY)}, known is "
            f"{FORMAT_VERSION}); evaluate again with --keep-head, or update selfpatch"
        )
    try:
        kind, values = PROTOCOLS[metadata["task"]], json.loads(metadata["protocol"])
        known = {field.name for field in fields(kind)}
        protocol = from_dict(kind, {name: value for name, value in values.items() if name in known})
        names, positions = json.loads(metadata["class_names"]), metadata["pos_embed_interpolation"]
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error}; evaluate again with --keep-head") from error
    return KeptHead(metadata["task"], protocol, names, positions)


def find_head(path: Path) -> Path:
    """The folder that holds a head and its backbone: `path`, or `path`/model.

    Raises:
        UserError: there is none.
    """
    for folder in (path, path / "model"):
        if (folder / HEAD_FILE).is_file() and (folder / BACKBONE_FILE).is_file():
            return folder
    raise UserError(
        f"{path} holds no head to predict with ({HEAD_FILE} and {BACKBONE_FILE}, in it or in its folder model); train "
        "one by selfpatch evaluate MODEL --task linear-segmentation --data DATA --out OUT --keep-head, and give OUT"
    )


class SegmentationModel:
    """A backbone with its head: the classes of every pixel of an image, exactly as the evaluation predicts them.

    Args:
        backbone: of the same folder as the head.

    Raises:
        UserError: the file does not hold the head that it says it does, for this backbone.
    """

    def __init__(self, backbone: Backbone, folder: Path, device: torch.device):
        kept = read_head(folder)
        self.task, self.protocol, self.class_names, _ = kept
        self.backbone = backbone
        module: nn.Module
        if kept.task == "linear-segmentation":
            module = LinearHead(backbone.embed_dim, len(kept.class_names), dropout=kept.protocol.dropout)
        else:
            module = DECODERS[kept.task](backbone, len(kept.class_names), kept.protocol)
            module.auxiliary = None
        try:
            missing, unexpected = module.load_state_dict(load_file(folder / HEAD_FILE), strict=False)
        except RuntimeError as error:
            raise UserError(
                f"{folder / HEAD_FILE} does not fit its backbone: {' '.join(str(error).split())}"
            ) from error
        if unexpected or [name for name in missing if not name.startswith("backbone.")]:
            raise UserError(
                f"{folder / HEAD_FILE} lacks tensors of a {kept.task} head; evaluate again with --keep-head"
            )
        self.module = module.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def predict(self, image: Real[np.ndarray, "H W _c"]) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel of an image of any size, from 0."""
        pixels = network_input(image, self.backbone, self.protocol, self._device)
        return upsampled_argmax(self.logits(pixels), image.shape[:2]).cpu().numpy().astype(np.uint8)

    def processing(self) -> dict[str, str]:
        """What a graph of a linear head leaves to who runs it, before and after, in words and as values in JSON."""
        protocol, patch_size = self.protocol, self.backbone.patch_size
        window = crop_size(protocol, patch_size)
        sides = f"{window[0]} x {window[1]} px (rows x columns)"
        pad = (
            "; pad each window on all sides with zeros to whole patches, the odd pixel right and below"
            if protocol.patch_fit == "center_pad"
            else ""
        )
        filtered = "with antialiasing" if protocol.antialias else "without antialiasing"
        limit = f", the long side at most {protocol.long_side} px" if protocol.long_side else ""
        return {
            "preprocessing": f"divide 8-bit levels by 255; resize bilinearly {filtered} so that the short side is "
            f"{protocol.image_size} px{limit}; subtract mean and divide by std, by channel; cut windows of {sides} at "
            f"steps of {protocol.stride} px, the last one at the border, a shorter side filled up with zeros on the "
            f"right and below{pad}",
            "postprocessing": f"resize the logits of each window bilinearly (half-pixel centers) to {sides}; average "
            "windows where they overlap; resize bilinearly to the image's own size; the class is the largest, from 0 "
            "in the order of class_names",
            "class_names": json.dumps(self.class_names),
            "image_size": json.dumps(protocol.image_size),
            "window": json.dumps(window),
            "stride": json.dumps(protocol.stride),
        }

    def logits(self, pixels: Float[Tensor, "_c H W"]) -> Float[Tensor, "C H W"]:
        if isinstance(self.module, Segmenter):
            return decoder_logits(self.module, self.protocol, pixels)
        return next(iter(linear_logits(self.backbone, self.protocol, [self.module], pixels)))
