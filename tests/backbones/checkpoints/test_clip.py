"""CLIP in OpenAI's and OpenCLIP's names, against tests/reference/plain_clip.py; torchvision's transformer, its own."""

import pytest
import torch
from torch import Tensor
from torchvision.models import VisionTransformer

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.config import IMAGENET_MEAN
from selfpatch.errors import UserError
from tests.backbones.checkpoints.layouts import prefixed, save
from tests.reference.plain_clip import clip_tensors, forward_clip

CLIP = clip_tensors()
TEXT = {
    "positional_embedding": torch.zeros(7, 8),
    "token_embedding.weight": torch.zeros(5, 8),
    "logit_scale": torch.zeros(()),
}
OPENAI = {"context_length": torch.tensor(7), "vocab_size": torch.tensor(5), "input_resolution": torch.tensor(24)}
IMAGE = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))


def compare(backbone, activation: str, tensors: dict[str, Tensor] = CLIP) -> None:
    expected = forward_clip(tensors, IMAGE, 3, activation)
    with torch.no_grad():
        tokens = backbone(IMAGE[None])
    torch.testing.assert_close(tokens.patch_tokens[0], expected[1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.cls_token[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_openai(dtype, tmp_path):
    """QuickGELU and its own normalization; text encoder and projection stay behind."""
    content = {name: t.to(dtype) for name, t in (prefixed("visual.", CLIP) | TEXT).items()} | OPENAI
    backbone = load_backbone(save(tmp_path / "clip.pt", content), num_heads=3)
    compare(backbone, "quick_gelu", {name: t.to(dtype).float() for name, t in CLIP.items()})
    assert backbone.mean == (0.48145466, 0.4578275, 0.40821073)
    assert "visual of the checkpoint" in backbone.notes and "read as OpenAI's CLIP" in backbone.notes


@pytest.mark.parametrize(
    ("name", "activation"),
    [("vit_base_patch16_clip_224.laion2b", "gelu"), ("vit_base_patch16_clip_quickgelu_224.openai", "quick_gelu")],
)
def test_openclip_by_name(name, activation, tmp_path):
    content = prefixed("visual.", CLIP) | TEXT
    compare(load_backbone(save(tmp_path / f"{name}.pt", content), num_heads=3), activation)


def test_openclip_leaves_its_activation_open(tmp_path):
    with pytest.raises(UserError, match="GELU or with QuickGELU.*timm's name of the model"):
        load_backbone(save(tmp_path / "open_clip.pt", prefixed("visual.", CLIP) | TEXT), num_heads=3)


def test_residual_network_of_clip_is_refused(tmp_path):
    content = {"visual.conv1.weight": torch.zeros(8, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)}
    with pytest.raises(UserError, match="holds no vision transformer of a known layout"):
        load_backbone(save(tmp_path / "rn50.pt", content | OPENAI))


@pytest.mark.parametrize("prefix", ["", "state_dict.teacher_backbone.vit."])
def test_torchvision(prefix, tmp_path):
    """Lightly wraps the same network."""
    torch.manual_seed(0)
    model = VisionTransformer(image_size=24, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone = load_backbone(save(tmp_path / "model.pth", prefixed(prefix, model.state_dict())), num_heads=3)
    with torch.no_grad():
        x = model._process_input(IMAGE[None])
        expected = model.encoder(torch.cat([model.class_token, x], dim=1))
        tokens = backbone(IMAGE[None])
    torch.testing.assert_close(tokens.patch_tokens, expected[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.cls_token, expected[:, 0], rtol=1e-5, atol=1e-5)
    assert backbone.mean == IMAGENET_MEAN and not any("assumed" in note for note in backbone.notes)
