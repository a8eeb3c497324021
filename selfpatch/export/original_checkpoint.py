"""DINO's training checkpoint, and SelfPatch's, which is one of DINO's without a class token: for their programs.

    {"student": {"module.backbone.NAME": ...}, "teacher": {"backbone.NAME": ...}}

Source: save_on_master in facebookresearch/dino main_dino.py, and load_pretrained_weights in its utils.py, which drops
"module." and "backbone."; in SelfPatch, ca_head.norm is the norm that patch tokens go through.
"""

import re
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pos_embed import OffsetPosEmbedViT
from selfpatch.errors import UserError
from selfpatch.export.structure import activation, common_norm_eps, problem_of_square_layouts
from selfpatch.output.atomic_files import atomic_write

NAMES = r"(cls_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.\w+)"


def export_original(backbone: Backbone, path: Path) -> None:
    """Write `path`. Student and teacher are the same network, as the exported backbone is one.

    Raises:
        UserError: the backbone has what DINO's vision transformer lacks.
    """
    if problem := _problem(backbone):
        raise UserError(
            f"DINO's checkpoint cannot hold this {backbone.architecture.name}: {problem}, which DINO's program does "
            "not know; choose another format: timm, hf, onnx or torch-export"
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.model.state_dict().items()}
    is_borrowed = backbone.final_norm_from_aggregator
    names = {
        name: f"{'ca_head' if is_borrowed and name.startswith('norm.') else 'backbone'}.{name}" for name in tensors
    }
    content = {
        "student": {f"module.{names[name]}": tensor for name, tensor in tensors.items()},
        "teacher": {names[name]: tensor for name, tensor in tensors.items()},
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def _problem(backbone: Backbone) -> str | None:
    """The first thing that DINO's vision transformer does not have; None: it has all."""
    model = backbone.model
    if type(model) not in (VisionTransformer, OffsetPosEmbedViT) or model.pos_embed is None:
        return f"it is timm's {type(model).__name__}, or has no learned positions"
    if other := [name for name in model.state_dict() if not re.fullmatch(NAMES, name)]:
        return f"it has {other[0]}"
    if model.no_embed_class and backbone.has_cls_token:
        return "its class token has no position"
    if activation(model) != "gelu" or common_norm_eps(model) != 1e-6:
        return "its activation is none of GELU, or the epsilon of its norms not 1e-6"
    # Without a class token it is SelfPatch's.
    return problem_of_square_layouts(backbone, needs_cls_token=False)
