"""`selfpatch export --remove-position`, and the meter of position in the scores of a run."""

import pytest
import torch

from selfpatch.backbones.position_removal import position_r2
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.cli.main import main
from selfpatch.commands.callbacks.position_leak import position_moments
from selfpatch.commands.export import export
from selfpatch.data.image_folder import ImageFolder, read_evenly_spaced
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=80, num_train=2, num_val=2, size=32, seed=0)
    return folder / "images"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights, with strong position embeddings."""
    file = tmp_path_factory.mktemp("model") / "backbone.safetensors"
    backbone = small_vit("class token")
    backbone.model.pos_embed.data *= 100
    export_timm(backbone, file)
    return file


def r2_of(file, images) -> float:
    return position_r2(*position_moments(load_backbone(file), read_evenly_spaced(ImageFolder(images), 1000)))


def test_what_is_left_of_position(images, model, tmp_path, capsys):
    file = tmp_path / "without.safetensors"
    line = export(model, file, remove_position=images)
    said = capsys.readouterr().out
    assert r2_of(model, images) > 0.5
    assert r2_of(file, images) < 0.05
    assert f"{r2_of(model, images):.2f} before" in said and "call the model itself" in " ".join(said.split())
    names = {}
    exec(line, names)
    network = names["backbone"].eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels)[:, 1:], load_backbone(file)(pixels).patch_tokens, rtol=0, atol=1e-5)


def test_what_cannot_be_done_is_refused(images, model, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(images.rglob("*.*"))[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"takes 480 patches, and the images have 48; give more images"):
        export(model, tmp_path / "out.safetensors", remove_position=few)
    swin = tmp_path / "swin.safetensors"
    export_timm(small_swin(), swin)
    with pytest.raises(UserError, match="is no plain vision transformer"):
        export(swin, tmp_path / "out.safetensors", remove_position=images)
    assert (
        main(["export", str(model), str(tmp_path / "out.safetensors"), "--remove-position", str(tmp_path / "no")]) == 2
    )
    assert not (tmp_path / "out.safetensors").exists()


def test_halves_hold_different_images(images, model):
    fitted, held_out = position_moments(load_backbone(model), read_evenly_spaced(ImageFolder(images), 9))
    assert (fitted.count, held_out.count) == (5 * 16, 4 * 16)
    assert isinstance(fitted.means, torch.Tensor) and not torch.equal(fitted.means, held_out.means)
