"""Mean and std of a checkpoint's images: from JSON beside it, timm's name, its program, or the user; else a note."""

import json
import math

import pytest
import torch

from selfpatch.backbones.checkpoints.sidecar import Hints, check_normalization, find_timm_name, normalization_by_name
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import encoder, save
from tests.backbones.small_vits import small_vit

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ASSUMED = "ImageNet's mean and std are assumed (--mean and --std say otherwise)"


def plain(path, **settings):
    return load_backbone(save(path, encoder()), num_heads=3, **settings)


def test_unknown_is_said(tmp_path):
    backbone = plain(tmp_path / "model.pth")
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert ASSUMED in backbone.notes[-1]


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_base_patch16_224.augreg_in21k.pth", HALF),
        ("vit_base_patch16_224-augreg_in21k.pth", HALF),
        ("vit_base_patch16_siglip_224.pth", HALF),  # all weights of that architecture agree
        ("flexivit_small.1200ep_in1k.pth", HALF),
        ("vit_base_patch16_224.mae.pth", IMAGENET_MEAN),
        ("vit_base_patch16_clip_224.openai.pth", CLIP_MEAN),
        ("vit_base_patch16_224.pth", None),  # 0.5, ImageNet's and CLIP's
        ("vit_base_patch16_2240.pth", None),
        ("model.pth", None),
    ],
)
def test_name_of_timm(name, mean, tmp_path):
    backbone = plain(tmp_path / name)
    assert backbone.mean == (mean or IMAGENET_MEAN)
    assert any(ASSUMED in note for note in backbone.notes) == (mean is None)


def test_name_of_the_folder_and_of_the_cache(tmp_path):
    for folder in (
        "vit_small_patch16_224.augreg_in21k",
        "models--timm--vit_small_patch16_224.augreg_in21k/snapshots/12ab",
    ):
        (tmp_path / folder).mkdir(parents=True)
        backbone = plain(tmp_path / folder / "model.pth")
        assert backbone.mean == HALF
        assert "(timm's vit_small_patch16_224.augreg_in21k)" in "\n".join(backbone.notes)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", ("vit_base_patch16_clip_quickgelu_224", "openai")),
        ("timm--vit_small_patch14_dinov2.lvd142m", ("vit_small_patch14_dinov2", "lvd142m")),
        ("vit_base_patch16_224_augreg_in21k_ft_in1k", ("vit_base_patch16_224", "augreg_in21k_ft_in1k")),
        ("my_vit_tiny_patch16_224_run3", ("vit_tiny_patch16_224", None)),
        ("my-vit_tiny_patch16_224-run3", ("vit_tiny_patch16_224", None)),
        ("myvit_tiny_patch16_224", None),
        ("checkpoint", None),
    ],
)
def test_names_in_text(text, found):
    assert find_timm_name(text) == found


def test_config_of_timm(tmp_path):
    """A folder of timm's hub: mean and std stand in pretrained_cfg."""
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = plain(tmp_path / "model.pth")
    assert (backbone.mean, backbone.std) == (CLIP_MEAN, CLIP_STD)
    assert "(config.json)" in "\n".join(backbone.notes)


def test_preprocessor_comes_first(tmp_path):
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": HALF}))
    assert plain(tmp_path / "model.pth").mean == HALF


def test_arguments_of_a_training(tmp_path):
    content = {"state_dict": encoder(), "arch": "vit_tiny_patch16_224", "args": {"mean": [0.1, 0.2, 0.3], "std": HALF}}
    backbone = load_backbone(save(tmp_path / "last.pth.tar", content), num_heads=3)
    assert backbone.mean == (0.1, 0.2, 0.3)
    del content["args"]  # timm then trains with those of the architecture's first weights
    assert load_backbone(save(tmp_path / "last.pth.tar", content), num_heads=3).mean == HALF


def test_program_is_a_stronger_sign_than_a_path(tmp_path):
    (tmp_path / "vit_base_patch16_siglip_224").mkdir()
    path = save(tmp_path / "vit_base_patch16_siglip_224" / "dino.pth", {"teacher": encoder(), "student": encoder()})
    backbone = load_backbone(path, num_heads=3)
    assert backbone.mean == IMAGENET_MEAN and "read as DINO" in backbone.notes
    assert not any(ASSUMED in note for note in backbone.notes)


def test_user_comes_first(tmp_path):
    backbone = plain(tmp_path / "vit_base_patch16_224.augreg_in21k.pth", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not any(ASSUMED in note for note in backbone.notes)
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    assert load_backbone(tmp_path, mean=HALF, std=HALF).std == HALF
    assert load_backbone("timm:vit_tiny_patch16_224", mean=HALF, std=HALF).std == HALF


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (HALF, None, "go together"),
        (None, HALF, "go together"),
        ((0.5, 0.5), HALF, "three numbers each"),
        ((0.5,) * 4, (0.5,) * 4, "three numbers each"),
        (HALF, (0.5, 0.5, 0.0), "std above 0"),
        (HALF, (0.5, 0.5, -0.1), "std above 0"),
        (HALF, (math.nan, 0.5, 0.5), "three numbers each"),
        ((math.inf, 0.5, 0.5), HALF, "three numbers each"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "divide those for values up to 255 by 255"),
    ],
)
def test_impossible_values_are_refused(mean, std, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plain(tmp_path / "model.pth", mean=mean, std=std)


@pytest.mark.parametrize("mean", [("a", "b", "c"), 0.5, None, [[1], [2], [3]], [10**400, 0, 0]])
def test_other_things_are_no_numbers(mean):
    with pytest.raises(UserError, match=r"\(x\) are no numbers"):
        check_normalization(mean, HALF, source="x")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, " " * 1_000_001, '{"model_type": "vit", "image_mean": 1'])
def test_damaged_json_is_refused(text, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            plain(tmp_path / "model.pth")
        (tmp_path / name).unlink()


def test_json_of_something_else_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"lr": 3, "hidden_size": 7}))
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    assert plain(tmp_path / "model.pth").mean == IMAGENET_MEAN


def test_by_name_and_by_number():
    assert normalization_by_name(Hints(architecture="vit_base_patch16_224", tag="augreg_in21k")) == (HALF, HALF)
    assert normalization_by_name(Hints(architecture="vit_base_patch16_224")) is None
    assert check_normalization(torch.tensor([0.5, 0.5, 0.5]), [0.5, 0.5, 0.5], source="x") == (HALF, HALF)
