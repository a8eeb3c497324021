import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.config import SelfPatchConfig
from selfpatch.visualization import pictures
from selfpatch.visualization.pictures import encode, visualize
from tests.backbones.small_vits import FAMILIES, small_vit


def photographs(*sizes: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"{i}.jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_every_family(family, tmp_path):
    backbone = small_vit(family)
    paths = visualize(backbone, photographs((50, 70), (90, 40)), tmp_path / "new" / "pictures")
    names = ["pca", "similarity", "positives"] + (["attention"] if backbone.has_cls_token else [])
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir()) == sorted(
        path.name for path in paths
    )
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > 512


def test_same_pictures_again(tmp_path):
    backbone, images = small_vit("class token"), photographs((50, 70), (90, 40))
    first, second = (visualize(backbone, images, tmp_path / name) for name in ("a", "b"))
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("size", "image_size", "grid_size"),
    [
        ((64, 64), 64, (8, 8)),
        ((100, 200), 64, (8, 16)),
        ((200, 100), 60, (15, 8)),  # 60 px are 7.5 patches
        ((30, 3000), 64, (3, 24)),  # the long side is at most three times as long
        ((7, 5), 24, (4, 3)),
    ],
)
def test_sizes(size, image_size, grid_size):
    ((name, pixels),) = photographs(size)
    image = encode(small_vit("class token"), name, pixels, image_size, min_patches=3)
    assert image.tokens.grid_size == grid_size
    assert image.pixels.shape == (8 * grid_size[0], 8 * grid_size[1], 3)


def test_backbone_gets_normalised_pixels():
    backbone = small_vit("class token")
    backbone.mean, backbone.std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    ((name, pixels),) = photographs((32, 32))
    image = encode(backbone, name, pixels, 32, min_patches=3)
    assert np.array_equal(image.pixels, pixels)
    normalized = (torch.tensor(pixels / 255) - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    with torch.no_grad():
        expected = backbone(normalized.float().permute(2, 0, 1)[None])
    torch.testing.assert_close(image.tokens.patch_tokens, expected.patch_tokens, rtol=1e-4, atol=1e-5)


def test_the_query_is_the_patch_under_the_pixel(tmp_path, monkeypatch):
    asked = []
    draw = pictures.draw_similarity_maps
    monkeypatch.setattr(
        pictures, "draw_similarity_maps", lambda images, queries: asked.append(queries) or draw(images, queries)
    )
    images = photographs((50, 100), (60, 60))
    visualize(small_vit("class token"), images, tmp_path, image_size=40, pixel=(99, 0))
    visualize(small_vit("class token"), images, tmp_path, image_size=40)
    assert asked == [[(0, (0, 9))], [(0, (2, 5)), (1, (2, 2))]]


def test_settings_of_selfpatch_are_used(tmp_path, monkeypatch):
    used = []
    draw = pictures.draw_positives
    monkeypatch.setattr(pictures, "draw_positives", lambda images, config: used.append(config) or draw(images, config))
    config = SelfPatchConfig(window_size=5, num_positives=6, padding_mode="none")
    visualize(small_vit("class token"), photographs((64, 64)), tmp_path, positives=config)
    assert used == [config]


def test_mistakes(tmp_path):
    backbone, images = small_vit("class token"), photographs((64, 64))
    with pytest.raises(ValueError, match="no images"):
        visualize(backbone, [], tmp_path)
    with pytest.raises(ValueError, match="image-size is 16 px, less than 3 patches of 8 px"):
        visualize(backbone, images, tmp_path, image_size=16)
    with pytest.raises(ValueError, match="outside the image"):
        visualize(backbone, images, tmp_path, pixel=(64, 0))
