"""Linear regression of position against numpy's, its removal, and the file that plain timm loads."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from selfpatch.backbones.backbone import Tokens
from selfpatch.backbones.position_removal import (
    PositionMoments,
    append_projection,
    patch_positions,
    position_r2,
    remove_position,
)
from selfpatch.backbones.pretrained import load_backbone, load_weights
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.reference.plain_position import plain_r2, plain_removal, positions_of

GRID, DIM = (4, 6), 12


def tokens_with_position(num_images: int, strength: float, seed: int) -> Tokens:
    """Noise of unequal variance, and the place along a few directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, DIM, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(num_images, 24, DIM, generator=generator) * torch.linspace(0.2, 2, DIM)
    return Tokens(None, noise + 0.5 + strength * patch_positions(GRID).float() @ directions, GRID)


def moments_of(*batches: Tokens) -> PositionMoments:
    moments = PositionMoments(DIM)
    for batch in batches:
        moments.add(batch)
    return moments


def flat(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    rows = tokens.patch_tokens.double().flatten(0, 1).numpy()
    return rows, np.tile(positions_of(*tokens.grid_size), (len(tokens.patch_tokens), 1))


@pytest.mark.parametrize("strength", [0.0, 0.3, 3.0])
def test_r2_equals_least_squares(strength):
    fitted, held_out = tokens_with_position(40, strength, 0), tokens_with_position(30, strength, 1)
    expected = plain_r2(*flat(fitted), *flat(held_out))
    halves = moments_of(*(fitted._replace(patch_tokens=p) for p in fitted.patch_tokens.split(7))), moments_of(held_out)
    assert position_r2(*halves) == pytest.approx(expected, abs=1e-9)


def test_known_answers():
    place = Tokens(None, patch_positions((5, 3)).float().expand(4, -1, -1), (5, 3))
    moments = PositionMoments(2)
    moments.add(place)
    assert position_r2(moments, moments) == pytest.approx(1)
    alike = PositionMoments(2)
    alike.add(place._replace(patch_tokens=torch.ones(4, 15, 2)))
    assert position_r2(alike, alike) == pytest.approx(0)


def test_rounds_equal_those_on_the_tokens_themselves():
    tokens = tokens_with_position(50, 1.0, 0)
    removal = remove_position(moments_of(tokens))
    rows, positions = flat(tokens)
    left = plain_removal(rows, positions, removal.num_rounds)
    np.testing.assert_allclose(rows @ removal.projection.numpy(), left, atol=1e-8)
    assert removal.r2[0] == pytest.approx(plain_r2(rows, positions, rows, positions))
    assert removal.r2[-1] == pytest.approx(plain_r2(left, positions, left, positions), abs=1e-6)
    assert removal.r2[0] > 0.5 and removal.r2[-1] < 0.01
    assert removal.r2 == sorted(removal.r2, reverse=True)


def test_the_projection_is_orthogonal_and_takes_two_directions_a_round():
    removal = remove_position(moments_of(tokens_with_position(50, 1.0, 0)), max_rounds=2)
    projection = removal.projection
    torch.testing.assert_close(projection, projection.T)
    torch.testing.assert_close(projection @ projection, projection)
    assert projection.trace().item() == pytest.approx(DIM - 2 * removal.num_rounds)


def test_tokens_without_position_stay_as_they_are():
    removal = remove_position(moments_of(tokens_with_position(500, 0.0, 0)))
    assert removal.num_rounds == 0
    assert torch.equal(removal.projection, torch.eye(DIM, dtype=torch.float64))


def test_a_single_row_of_patches():
    tokens = tokens_with_position(50, 1.0, 0)._replace(grid_size=(1, 24))
    assert 0 < position_r2(moments_of(tokens), moments_of(tokens)) < 1
    removal = remove_position(moments_of(tokens))
    assert torch.isfinite(removal.projection).all() and removal.r2[-1] < removal.r2[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_timm_and_this_package_give_the_projected_tokens(family, tmp_path):
    backbone = small_vit(family)
    rows, columns = backbone.patch_size
    images = torch.randn(2, 3, 3 * rows, 5 * columns)
    plane = torch.linalg.qr(torch.randn(24, 6, dtype=torch.float64)).Q
    projection = torch.eye(24, dtype=torch.float64) - plane @ plane.T
    with torch.no_grad():
        expected = backbone(images).patch_tokens @ projection.float()
        append_projection(backbone, projection)
        line = export_timm(backbone, tmp_path / "backbone.safetensors")
        model = eval(line, {"timm": timm}).eval()
        theirs = model(images)[:, model.num_prefix_tokens :]
        loaded = load_backbone(tmp_path / "backbone.safetensors")
        ours = loaded(images).patch_tokens
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert loaded.embed_dim == 24


def test_a_run_starts_from_such_a_file_without_its_map(tmp_path):
    backbone = small_vit("class token")
    append_projection(backbone, torch.eye(24, dtype=torch.float64))
    export_timm(backbone, tmp_path / "backbone.safetensors")
    fresh = small_vit("class token")
    load_weights(fresh, tmp_path / "backbone.safetensors")
    assert isinstance(fresh.model.head, nn.Identity)
    assert torch.equal(fresh.model.pos_embed, backbone.model.pos_embed)


def test_it_is_removed_once():
    backbone = small_vit("class token")
    append_projection(backbone, torch.eye(24, dtype=torch.float64))
    with pytest.raises(UserError, match="has a layer behind its final norm already"):
        append_projection(backbone, torch.eye(24, dtype=torch.float64))


def test_a_head_of_another_width_is_refused(tmp_path):
    """Its output would be classes, not tokens."""
    backbone = small_vit("class token")
    backbone.model.head = nn.Linear(24, 7)
    name, arguments = backbone.architecture
    backbone.architecture = backbone.architecture._replace(name=name, arguments=arguments | {"num_classes": 7})
    export_timm(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(UserError, match="does not hold the"):
        load_backbone(tmp_path / "backbone.safetensors")
