import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import SafetensorError, safe_open

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.export.timm_file import export_timm
from tests.backbones.small_vits import FAMILIES, small_vit


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_timm_gives_the_same_tokens(family, tmp_path):
    backbone = small_vit(family)
    line = export_timm(backbone, tmp_path / "backbone.safetensors")
    model = eval(line, {"timm": timm}).eval()
    loaded = load_backbone(tmp_path / "backbone.safetensors")
    x = torch.randn(2, 3, 3 * backbone.patch_size[0], 5 * backbone.patch_size[1])
    with torch.no_grad():
        ours, theirs = backbone(x), model.forward_features(x)
        assert torch.equal(loaded(x).patch_tokens, ours.patch_tokens)
    torch.testing.assert_close(theirs[:, model.num_prefix_tokens :], ours.patch_tokens, rtol=0, atol=1e-5)
    if ours.cls_token is not None:
        torch.testing.assert_close(theirs[:, 0], ours.cls_token, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "with space", "it's", 'say "so"', "back\\slash", "ünïcode"])
def test_the_line_quotes_the_path(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    line = export_timm(small_vit("class token"), folder / "backbone.safetensors")
    assert "\n" not in line
    eval(line, {"timm": timm})


@pytest.mark.slow
def test_the_line_runs_without_this_package(tmp_path):
    line = export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    code = f"import timm\n{line}\nimport sys; assert 'selfpatch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)


def test_a_full_disk_is_an_error_of_the_disk(tmp_path, monkeypatch):
    def full(*_arguments, **_settings):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("selfpatch.export.timm_file.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    assert not list(tmp_path.iterdir())


def test_metadata(tmp_path):
    file = tmp_path / "backbone.safetensors"
    export_timm(small_vit("class token"), file, metadata={"recipe": "dino-selfpatch", "step": "12"})
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    assert metadata["recipe"] == "dino-selfpatch"
    assert metadata["step"] == "12"
    assert metadata["architecture"] == "vit_tiny_patch16_224"
    assert json.loads(metadata["arguments"])["img_size"] == [32, 32]
    assert json.loads(metadata["patch_size"]) == [8, 8]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]


def test_normalisation_and_architecture_survive(tmp_path):
    backbone = small_vit("registers")
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    export_timm(backbone, tmp_path / "a.safetensors")
    loaded = load_backbone(tmp_path / "a.safetensors")
    assert (loaded.mean, loaded.std) == (backbone.mean, backbone.std)
    assert loaded.architecture == backbone.architecture
    line = export_timm(loaded, tmp_path / "b.safetensors")
    assert line.replace("b.safetensors", "a.safetensors") == export_timm(backbone, tmp_path / "a.safetensors")


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    file = tmp_path / "backbone.safetensors"
    export_timm(small_vit("class token"), file)
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("selfpatch.export.timm_file.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        export_timm(small_vit("no class token"), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        export_timm(small_vit("class token"), tmp_path / "backbone.pth")
