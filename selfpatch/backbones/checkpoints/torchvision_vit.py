"""torchvision's VisionTransformer, which Lightly wraps too."""

from selfpatch.backbones.checkpoints.checkpoint_format import (
    IMAGENET,
    CheckpointFormat,
    Encoder,
    Names,
    rename,
)
from selfpatch.backbones.checkpoints.vit_structure import infer_vit

NAMES: Names = (
    (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
    (r"class_token", r"cls_token"),
    (r"encoder\.pos_embedding", r"pos_embed"),
    (r"encoder\.ln\.(.*)", r"norm.\1"),
    (r"heads\.(.*)", r"head.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.ln_([12])\.(.*)", r"\1.norm\2.\3"),
    (r"(blocks\.\d+)\.self_attention\.in_proj_(.*)", r"\1.attn.qkv.\2"),
    (r"(blocks\.\d+)\.self_attention\.out_proj\.(.*)", r"\1.attn.proj.\2"),
    (r"(blocks\.\d+)\.mlp\.(?:linear_1|0)\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.mlp\.(?:linear_2|3)\.(.*)", r"\1.mlp.fc2.\2"),
)

TORCHVISION = CheckpointFormat(
    "torchvision",
    lambda network: "conv_proj.weight" in network.tensors,
    lambda network: Encoder(rename(network.tensors, NAMES)),
    infer_vit,
    normalization=IMAGENET,
)
