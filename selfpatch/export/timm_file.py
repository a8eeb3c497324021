"""A file that plain timm loads by one line of Python."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from selfpatch.backbones.backbone import Architecture, Backbone
from selfpatch.backbones.build import is_swin, norm_eps
from selfpatch.backbones.pretrained import ARCHITECTURE_ARGUMENTS, FORMAT_KEY, FORMAT_VERSION
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.versions import installed_version


def export_timm(backbone: Backbone, path: Path, *, metadata: Mapping[str, str] | None = None) -> str:
    """Write `path` (whole or not at all) and return the line that loads it, after `import timm`.

    Tensors carry timm's names. What `load_backbone` needs besides stands in the file's metadata, with `metadata` added.
    Plain timm resamples position embeddings in its own way, whatever the backbone was set to. Which blocks of a
    Swin shift their windows it decides at the size that the Swin was built for, the backbone anew at every size.

    Raises:
        UserError: the name does not end in .safetensors, by which timm tells the format; or a Swin without final norm.
        OSError: the file cannot be written; what was there before is untouched.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors, by which timm tells the format of a file")
    name, arguments = timm_arguments(backbone)
    description = {
        "format": "pt",  # as Hugging Face's readers expect
        FORMAT_KEY: FORMAT_VERSION,
        "selfpatch_version": installed_version("selfpatch"),
        "architecture": name,
        "arguments": json.dumps(arguments),
        "patch_size": json.dumps(backbone.patch_size),
        "num_channels": json.dumps(backbone.num_channels),
        "mean": json.dumps(backbone.mean),
        "std": json.dumps(backbone.std),
        "norm_eps": json.dumps(norm_eps(backbone.model)),
        "final_norm_from_aggregator": json.dumps(backbone.final_norm_from_aggregator),
    }
    if not backbone.pixels.is_8_bit_rgb or backbone.pixels.shown_channels is not None:
        # How stored values become those in [0, 1] that mean and std are for.
        pixels = backbone.pixels._asdict()
        del pixels["num_channels"]
        description["pixels"] = json.dumps(pixels)
    tensors = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(metadata or {}) | description)
        except SafetensorError as error:  # a full disk, say
            size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
            raise OSError(f"{path} ({size:.1f} MB) cannot be written: {error}") from error
    return Architecture(name, arguments).as_code(checkpoint_path=str(path))


def timm_arguments(backbone: Backbone) -> Architecture:
    """The arguments by which plain timm builds the network, with or without a final norm as it is.

    Raises:
        UserError: a Swin without final norm.
    """
    name, arguments = backbone.architecture
    if isinstance(backbone.final_norm, nn.Identity):
        if is_swin(name):
            raise UserError(f"this {name} has no final norm, which timm's always has; export it with its norm")
        if arguments.get("use_post_transformer_norm") is not False:  # Eva's word for it
            arguments = arguments | {"final_norm": False}
    assert arguments.keys() <= ARCHITECTURE_ARGUMENTS, arguments
    return Architecture(name, arguments)
