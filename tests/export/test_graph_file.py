"""ONNX and torch.export: one file gives the backbone's tokens for images of any size."""

import builtins
import json
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from selfpatch.backbones import pos_embed
from selfpatch.errors import RunFailedError, UserError
from selfpatch.export import graph_file
from selfpatch.export.dynamic_size import (
    TokensOfImages,
    build_grid,
    resample_antialias,
    resample_with_offset,
    shifted_window_attention,
    sizes_as_tensors,
)
from selfpatch.export.graph_file import export_onnx, export_program
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit

onnxruntime = pytest.importorskip("onnxruntime")

MODELS = {
    "class token": lambda: small_vit("class token"),
    "DINO's positions": lambda: small_vit("class token", pos_embed_interpolation="offset"),
    "registers": lambda: small_vit("registers"),
    "RoPE and registers": lambda: small_vit("RoPE and registers"),
    "RoPE and positions": lambda: small_vit("RoPE and positions"),
    "Swin": small_swin,
}
# (images, rows, columns): the size it was built for, others, one window and several, padded ones; none was traced.
SIZES = [(1, 4, 4), (3, 3, 7), (2, 9, 2), (1, 2, 2), (1, 8, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_gives_the_tokens_of_any_size(name, tmp_path):
    backbone = MODELS[name]()
    export_onnx(backbone, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = ["patch_tokens", "cls_token"] if backbone.has_cls_token else ["patch_tokens"]
    assert [output.name for output in session.get_outputs()] == names
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == list(backbone.mean)
    for batch, rows, columns in SIZES:
        images = torch.randn(batch, 3, rows * backbone.patch_size[0], columns * backbone.patch_size[1])
        with torch.no_grad():
            expected = backbone(images)
        outputs = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs[0]), expected.patch_tokens, rtol=1e-4, atol=1e-4)
        if expected.cls_token is not None:
            torch.testing.assert_close(torch.from_numpy(outputs[1]), expected.cls_token, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_torch_loads_the_program(tmp_path):
    backbone = small_vit("class token")
    export_program(backbone, tmp_path / "model.pt2")
    extra = {"description.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["description.json"])["architecture"] == backbone.architecture.name
    for batch, rows, columns in SIZES:
        images = torch.randn(batch, 3, rows * backbone.patch_size[0], columns * backbone.patch_size[1])
        with torch.no_grad():
            torch.testing.assert_close(program(images)[0], backbone(images).patch_tokens, rtol=1e-5, atol=1e-5)


def test_the_backbone_and_timm_are_as_before(tmp_path):
    backbone = small_swin()
    images = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        before = backbone(images).patch_tokens
        with sizes_as_tensors(TokensOfImages(backbone).backbone):
            pass
        assert torch.equal(backbone(images).patch_tokens, before)
    assert pos_embed.resample_with_offset is not resample_with_offset
    assert all("_attn" not in vars(block) for block in backbone.blocks)


@pytest.mark.parametrize("new", [(5, 7), (3, 9), (10, 4), (2, 2)])
def test_resampled_positions_are_torchs(new):
    positions = torch.randn(1, 2 + 5 * 7, 6)
    torch.testing.assert_close(
        resample_antialias(positions, new, (5, 7), num_prefix_tokens=2),
        resample_abs_pos_embed(positions, new_size=new, old_size=(5, 7), num_prefix_tokens=2),
        rtol=0, atol=1e-5,
    )  # fmt: skip
    patches = positions[:, 2:]
    grid = patches.unflatten(1, (5, 7)).permute(0, 3, 1, 2)
    scale = ((new[0] + 0.1) / 5, (new[1] + 0.1) / 7)
    resampled = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    expected = patches if new == (5, 7) else resampled
    torch.testing.assert_close(resample_with_offset(patches, (5, 7), new), expected, rtol=0, atol=1e-5)


def test_a_centered_grid_runs_from_border_to_border():
    grid = build_grid(None, (2, 4), "centered")
    assert grid[:, 0, 0].tolist() == [-0.5, 0.5]
    assert grid[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (5, 9), (4, 11), (3, 2)])
def test_windows_are_those_of_timm(size):
    """Of a block that shifts, with its mask, on maps of one window, of several, and padded ones."""
    block = small_swin(img_size=64).model.layers[0].blocks[0]
    block.target_shift_size = (2, 2)
    block.dynamic_mask = True
    x = torch.randn(2, *size, 12)
    block.shift_size = tuple(2 if side > 4 else 0 for side in size)
    with torch.no_grad():
        torch.testing.assert_close(shifted_window_attention(block, x), block._attn(x), rtol=0, atol=1e-5)


def test_a_graph_that_gives_other_tokens_is_not_written(tmp_path, monkeypatch):
    network = TokensOfImages(small_vit("class token"))
    with pytest.raises(RunFailedError, match="other cls_token .* 3 x 7 patches"):
        graph_file.check(
            network,
            lambda images: [
                tokens + 0.1 * (index == 1 and images.shape[-1] != images.shape[-2])
                for index, tokens in enumerate(network(images))
            ],
        )
    with pytest.raises(RunFailedError, match="other patch_tokens"):
        graph_file.check(network, lambda images: [tokens * math.nan for tokens in network(images)])
    monkeypatch.setattr(graph_file, "TOLERANCE", -1.0)
    with pytest.raises(RunFailedError):
        export_program(small_vit("class token"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_onnx_that_is_not_installed_is_named(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return imported(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs onnxruntime.*pip install 'selfpatch\[onnx\]'"):
        export_onnx(small_vit("class token"), tmp_path / "model.onnx")


def test_more_weights_than_an_onnx_file_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_file, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(UserError, match="at most 2 GB"):
        export_onnx(small_vit("class token"), tmp_path / "model.onnx")
