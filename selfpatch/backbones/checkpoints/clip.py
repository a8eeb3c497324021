"""CLIP's image encoder (OpenAI's and OpenCLIP's names, Hugging Face's names), and SigLIP's in Hugging Face's names.

timm sends every token through the norm after the last block, which CLIP applies to the class token alone; so do we.
"""

from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import (
    CheckpointFormat,
    Encoder,
    Names,
    Network,
    join_qkv,
    rename,
)
from selfpatch.backbones.checkpoints.huggingface import with_config
from selfpatch.backbones.checkpoints.sidecar import Normalization
from selfpatch.backbones.checkpoints.vit_structure import infer_vit

# Source: openai/CLIP clip.py, _transform.
CLIP_NORMALIZATION = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP_NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

NAMES: Names = (
    (r"conv1\.weight", r"patch_embed.proj.weight"),
    (r"class_embedding", r"cls_token"),
    (r"positional_embedding", r"pos_embed"),
    (r"ln_pre\.(.*)", r"norm_pre.\1"),
    (r"ln_post\.(.*)", r"norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.ln_([12])\.(.*)", r"\1.norm\2.\3"),
    (r"(blocks\.\d+)\.ls_([12])\.gamma", r"\1.ls\2.gamma"),
    (r"(blocks\.\d+)\.attn\.in_proj_(.*)", r"\1.attn.qkv.\2"),
    (r"(blocks\.\d+)\.attn\.out_proj\.(.*)", r"\1.attn.proj.\2"),
    (r"(blocks\.\d+)\.mlp\.c_fc\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.mlp\.c_proj\.(.*)", r"\1.mlp.fc2.\2"),
)
HUGGING_FACE_NAMES: Names = (
    (r"embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
    (r"embeddings\.class_embedding", r"cls_token"),
    (r"embeddings\.position_embedding\.weight", r"pos_embed"),
    (r"embeddings\.position_ids", r"position_ids"),
    (r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    (r"post_layernorm\.(.*)", r"norm.\1"),
    (r"encoder\.layers\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.layer_norm([12])\.(.*)", r"\1.norm\2.\3"),
    (r"(blocks\.\d+)\.self_attn\.([qkv])_proj\.(.*)", r"\1.attn.\2.\3"),
    (r"(blocks\.\d+)\.self_attn\.out_proj\.(.*)", r"\1.attn.proj.\2"),
)


def is_clip(network: Network) -> bool:
    return "conv1.weight" in network.tensors


def is_openai(network: Network) -> bool:
    """The numbers of its text encoder, which OpenAI keeps among the tensors, and OpenCLIP does not."""
    return is_clip(network) and "context_length" in network.file_tensors


def is_huggingface_siglip(network: Network) -> bool:
    return "embeddings.patch_embedding.bias" in network.tensors


def is_huggingface_clip(network: Network) -> bool:
    return "embeddings.patch_embedding.weight" in network.tensors


def read_clip(network: Network) -> Encoder:
    tensors = _with_batch_axis(rename(network.tensors, NAMES))
    architecture = network.hints.architecture or ""
    if is_openai(network) or "quickgelu" in architecture:
        return Encoder(tensors, activation="quick_gelu")
    return Encoder(tensors, activation="gelu" if "_clip_" in architecture else None)


def read_huggingface_clip(network: Network) -> Encoder:
    tensors = join_qkv(_with_batch_axis(rename(network.tensors, HUGGING_FACE_NAMES)))
    # transformers knows SigLIP with one activation only.
    encoder = Encoder(tensors, activation="gelu_tanh" if is_huggingface_siglip(network) else None)
    return with_config(network, encoder, width=len(tensors["patch_embed.proj.weight"]))


def _with_batch_axis(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, rank in (("cls_token", 1), ("pos_embed", 2)):
        if name in tensors and tensors[name].ndim == rank:
            tensors[name] = tensors[name][(None,) * (3 - rank)]
    return tensors


OPENAI_CLIP = CheckpointFormat("OpenAI's CLIP", is_openai, read_clip, infer_vit, normalization=CLIP_NORMALIZATION)
OPEN_CLIP = CheckpointFormat("OpenCLIP", is_clip, read_clip, infer_vit)
SIGLIP = CheckpointFormat(
    "Hugging Face's SigLIP", is_huggingface_siglip, read_huggingface_clip, infer_vit, normalization=SIGLIP_NORMALIZATION
)
HUGGING_FACE_CLIP = CheckpointFormat("Hugging Face's CLIP", is_huggingface_clip, read_huggingface_clip, infer_vit)
