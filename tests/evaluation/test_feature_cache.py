import pytest
import torch

from selfpatch.evaluation import feature_cache
from selfpatch.evaluation.feature_cache import CachedBackbone, unwrap_cache
from selfpatch.evaluation.fingerprint import fingerprint
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit


@pytest.fixture
def backbone():
    return small_vit("class token")


def cached(backbone, tmp_path, max_bytes=1e9):
    return CachedBackbone(backbone, tmp_path / "cache", max_bytes=max_bytes)


@torch.no_grad()
def test_answers_are_the_backbones_own_and_come_from_disk_the_second_time(backbone, tmp_path):
    images = torch.randn(3, 3, 32, 48)
    expected = backbone(images), backbone.forward_intermediates(images, [0, -1]), backbone.last_attention_keys(images)
    for found in (0, 9):
        memory = cached(backbone, tmp_path)
        tokens, maps, keys = (
            memory(images),
            memory.forward_intermediates(images, [0, -1]),
            memory.last_attention_keys(images),
        )
        assert tokens.grid_size == expected[0].grid_size
        torch.testing.assert_close(tokens.patch_tokens, expected[0].patch_tokens)
        torch.testing.assert_close(tokens.cls_token, expected[0].cls_token)
        torch.testing.assert_close(maps, expected[1])
        torch.testing.assert_close(keys, expected[2])
        assert (memory.num_found, memory.num_encoded) == (found, 9 - found)


@torch.no_grad()
def test_other_pixels_weights_or_stages_are_encoded_anew(backbone, tmp_path):
    images = torch.randn(2, 3, 32, 32)
    cached(backbone, tmp_path)(images)
    memory = cached(backbone, tmp_path)
    memory(images[:1])
    memory(torch.cat([images[1:], images[:1] + 1e-6]))
    assert (memory.num_found, memory.num_encoded) == (2, 1)
    memory.forward_intermediates(images, [0])
    memory.forward_intermediates(images, [1])
    assert memory.num_encoded == 5
    backbone.model.norm.weight += 1e-6
    memory = cached(backbone, tmp_path)
    memory(images)
    assert memory.num_encoded == 2


def test_a_damaged_file_is_made_again_and_a_full_cache_keeps_working(backbone, tmp_path, monkeypatch):
    images = torch.randn(2, 3, 32, 32)
    expected = cached(backbone, tmp_path)(images).patch_tokens
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(cached(backbone, tmp_path)(images).patch_tokens, expected)
    small = CachedBackbone(backbone, tmp_path / "small", max_bytes=10)
    small(images)
    monkeypatch.setattr(feature_cache, "SPARE_SHARE", 1.1)
    CachedBackbone(backbone, tmp_path / "small", max_bytes=1e9)(images)
    assert not list((tmp_path / "small").rglob("*.safetensors"))


@torch.no_grad()
def test_what_stands_in_no_tensor_counts_too(backbone, tmp_path):
    images = torch.randn(1, 3, 48, 32)
    cached(backbone, tmp_path)(images)
    for change in (lambda: backbone.set_num_heads(2), lambda: setattr(backbone, "pos_embed_interpolation", "offset")):
        change()
        memory = cached(backbone, tmp_path)
        torch.testing.assert_close(memory(images).patch_tokens, backbone(images).patch_tokens)
        assert memory.num_encoded == 1


def test_it_is_the_same_model(backbone, tmp_path):
    backbone.notes = ("random",)
    memory = cached(backbone, tmp_path)
    assert memory.notes == backbone.notes
    assert fingerprint(memory) == fingerprint(backbone) and unwrap_cache(memory) is backbone is unwrap_cache(backbone)


@torch.no_grad()
def test_a_model_without_a_class_token(tmp_path):
    backbone = small_swin()
    images = torch.randn(1, 3, 64, 32)
    for _ in range(2):
        tokens = cached(backbone, tmp_path)(images)
        assert tokens.cls_token is None and tokens.grid_size == backbone(images).grid_size
    torch.testing.assert_close(tokens.patch_tokens, backbone(images).patch_tokens)
