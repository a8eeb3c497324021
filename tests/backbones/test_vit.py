import copy

import pytest
import timm
import torch

from selfpatch.backbones.backbone import Architecture
from selfpatch.backbones.build import build_backbone, create_timm
from selfpatch.backbones.pos_embed import resample_with_offset
from selfpatch.backbones.vit import ViT
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.reference.plain_position_resampling import resample_positions

LEARNED = ["class token", "no class token", "no final norm", "registers"]


def images(backbone: ViT, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, rows * backbone.patch_size[0], columns * backbone.patch_size[1], generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grid_size", [(4, 4), (3, 6), (5, 2)])
def test_tokens_are_those_of_timm(family, grid_size):
    backbone = small_vit(family)
    x = images(backbone, *grid_size)
    with torch.no_grad():
        tokens = backbone(x)
        plain = backbone.model.forward_features(x)
    assert tokens.grid_size == grid_size
    assert tokens.patch_tokens.shape == (2, grid_size[0] * grid_size[1], 24)
    assert torch.equal(tokens.patch_tokens, plain[:, -grid_size[0] * grid_size[1] :])
    assert (tokens.cls_token is not None) == backbone.has_cls_token
    assert backbone.has_cls_token == (family not in ("no class token", "no final norm", "post-norm"))
    if backbone.has_cls_token:
        assert torch.equal(tokens.cls_token, plain[:, 0])


def test_what_it_says_of_itself():
    backbone = small_vit("registers")
    assert (backbone.patch_size, backbone.embed_dim, backbone.num_heads) == ((14, 14), 24, 3)
    assert (backbone.num_prefix_tokens, backbone.has_cls_token, backbone.notes) == (5, True, ())


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_builds_it_again(family):
    backbone = small_vit(family)
    if family == "no final norm":
        return  # see the export, which says so to timm
    model = eval(backbone.architecture.as_code(), {"timm": timm})
    model.load_state_dict(backbone.model.state_dict(), strict=True)


@pytest.mark.parametrize("family", LEARNED)
def test_dino_and_timm_agree_on_the_own_grid_only(family):
    backbone, dino = small_vit(family), small_vit(family, pos_embed_interpolation="offset")
    with torch.no_grad():
        same, other = images(backbone, 4, 4), images(backbone, 6, 5)
        torch.testing.assert_close(dino(same).patch_tokens, backbone(same).patch_tokens, rtol=1e-5, atol=1e-5)
        if dino.has_cls_token:
            torch.testing.assert_close(dino(same).cls_token, backbone(same).cls_token, rtol=1e-5, atol=1e-5)
        assert (dino(other).patch_tokens - backbone(other).patch_tokens).abs().max() > 1e-3


@pytest.mark.parametrize("new_grid", [(3, 7), (8, 4), (1, 1), (5, 6)])
def test_dino_resampling_equals_plain(new_grid):
    positions = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))
    ours = resample_with_offset(positions.flatten(0, 1)[None], (5, 6), new_grid)
    if new_grid == (5, 6):
        assert torch.equal(ours, positions.flatten(0, 1)[None])
    else:
        plain = resample_positions(positions, new_grid)
        torch.testing.assert_close(ours[0].unflatten(0, new_grid), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "resampling"),
    [(family, "antialias") for family in FAMILIES] + [(family, "offset") for family in LEARNED],
)
def test_positions_resampled_for_good_give_the_same_tokens(family, resampling):
    backbone = small_vit(family, pos_embed_interpolation=resampling)
    inputs, before = images(backbone, 3, 6), backbone.model.pos_embed
    with torch.no_grad():
        expected = backbone(inputs).patch_tokens
        backbone.set_image_size((inputs.shape[2], inputs.shape[3]))
        torch.testing.assert_close(backbone(inputs).patch_tokens, expected, rtol=1e-6, atol=1e-6)
    assert backbone(images(backbone, 4, 4)).grid_size == (4, 4)
    if before is not None:
        assert backbone.model.pos_embed.shape[1] == before.shape[1] + 3 * 6 - 4 * 4
        assert backbone.model.pos_embed.requires_grad and backbone.model.pos_embed.is_leaf


@pytest.mark.parametrize("family", ["RoPE", "RoPE and positions"])
def test_dino_resampling_is_refused_where_dino_has_none(family):
    with pytest.raises(ValueError, match="use pos-embed-interpolation antialias"):
        small_vit(family, pos_embed_interpolation="offset")


def test_stochastic_depth_is_for_training():
    backbone = build_backbone(
        BackboneConfig(name="vit_tiny_patch16_224", embed_dim=24, depth=2, drop_path=0.5),
        (32, 32),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    x = images(backbone, 2, 2)
    assert torch.equal(backbone.eval()(x).patch_tokens, backbone(x).patch_tokens)
    assert "drop_path_rate" not in backbone.architecture.arguments


def test_images_that_cannot_be_cut_into_patches():
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut into patches of 8 x 8"):
        small_vit("class token")(torch.zeros(1, 3, 20, 16))


def test_unknown_and_unfit_models():
    with pytest.raises(ValueError, match="Nearest: vit_small_patch16"):
        create_timm("vit_smal_patch16_224")
    with pytest.raises(ValueError, match="timm cannot build 'resnet18'"):
        create_timm("resnet18", dynamic_img_size=True)
    with pytest.raises(ValueError, match="'resnet18' is a ResNet; backbones are vision transformers"):
        create_timm("resnet18")


def test_code_quotes_what_needs_it():
    code = Architecture("vit_x", {"img_size": (64, 32)}).as_code(checkpoint_path='it\'s "here"')
    assert code == """timm.create_model('vit_x', img_size=(64, 32), checkpoint_path='it\\'s "here"')"""


def test_the_final_norm_is_read_and_set_where_timm_has_it():
    backbone = small_vit("class token")
    keys = backbone.state_dict().keys()
    norm = torch.nn.LayerNorm(24, eps=1e-6)
    backbone.final_norm = norm
    assert backbone.model.norm is norm is backbone.final_norm
    assert backbone.state_dict().keys() == keys  # torch did not register it a second time
    backbone.remove_final_norm()
    assert isinstance(backbone.model.norm, torch.nn.Identity)
    assert backbone.state_dict().keys() == {key for key in keys if not key.startswith("model.norm.")}


def test_positions_switch_between_timm_and_dino():
    """As a run trained with DINO's ships a backbone with timm's."""
    backbone, dino = small_vit("registers"), small_vit("registers", pos_embed_interpolation="offset")
    x = images(backbone, 6, 5)
    with torch.no_grad():
        expected = backbone(x).patch_tokens
        for network in (dino, copy.deepcopy(dino)):
            assert network.pos_embed_interpolation == "offset"
            assert not torch.equal(network(x).patch_tokens, expected)
            network.pos_embed_interpolation = "antialias"
            assert torch.equal(network(x).patch_tokens, expected)
    assert backbone.pos_embed_interpolation == "antialias"


def test_other_numbers_of_heads():
    backbone = small_vit("parallel blocks")
    x = images(backbone, 2, 3)
    before = backbone(x).patch_tokens
    backbone.set_num_heads(2)
    assert backbone.num_heads == 2 and not torch.allclose(backbone(x).patch_tokens, before, atol=1e-3)
    backbone.set_num_heads(3)
    assert torch.equal(backbone(x).patch_tokens, before)
    config = BackboneConfig(name="vit_pwee_patch16_reg1_gap_256", embed_dim=24, depth=1, num_heads=3)
    for refusing in (small_vit("RoPE"), build_backbone(config, (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)):
        with pytest.raises(ValueError, match="are made for its own 3 attention heads"):
            refusing.set_num_heads(2)
