import numpy as np
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.visualization.patch_pca import draw_patch_pca, patch_pca
from selfpatch.visualization.sheet import EncodedImage


def token_maps(*grids: tuple[int, int], dim: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.1, dim)  # so that components are well apart
    return [torch.randn(*grid, dim, generator=generator) * scales for grid in grids]


def test_equals_singular_value_decomposition():
    maps = token_maps((5, 6), (9, 3))
    pca = patch_pca(maps)
    tokens = torch.cat([tokens.flatten(0, 1) for tokens in maps]).double().numpy()
    _, s, directions = np.linalg.svd(tokens - tokens.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(pca.explained, s[:3] ** 2 / (s**2).sum(), rtol=1e-5)
    ours = torch.cat([colors.flatten(0, 1) for colors in pca.maps])
    for i in range(3):
        direction = directions[i] * np.sign(directions[i][np.abs(directions[i]).argmax()])
        projected = (tokens - tokens.mean(axis=0)) @ direction
        low, high = np.percentile(projected, [2, 98])
        np.testing.assert_allclose(ours[:, i], ((projected - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_images_share_their_colours():
    """The same patch has the same colour wherever it is; alone, an image would get others."""
    first, second = token_maps((4, 5), (6, 3))
    second[5, 2] = first[1, 3]
    together = patch_pca([first, second]).maps
    assert torch.equal(together[0][1, 3], together[1][5, 2])
    assert not torch.allclose(together[0], patch_pca([first]).maps[0], atol=1e-2)


def test_order_of_images_and_sign_of_axes_do_not_matter():
    first, second = token_maps((4, 5), (6, 3))
    a, b = patch_pca([first, second]).maps, patch_pca([second, first]).maps
    torch.testing.assert_close(a[0], b[1])
    # Turned around zero, every component turns too, and the brightest patch becomes the darkest.
    opposite = patch_pca([-first, -second]).maps
    torch.testing.assert_close(opposite[0], 1 - a[0], rtol=1e-5, atol=1e-5)


def test_collapsed_tokens_give_one_colour():
    pca = patch_pca([torch.ones(4, 4, 8)])
    assert pca.maps[0].isfinite().all()
    assert (pca.maps[0] == pca.maps[0][0, 0]).all()


def test_picture():
    images = [
        EncodedImage(
            f"{i}.jpg", np.zeros((16 * r, 16 * s, 3), np.uint8), Tokens(None, torch.randn(1, r * s, 8), (r, s))
        )
        for i, (r, s) in enumerate([(4, 8), (8, 8), (8, 4)])
    ]
    picture = draw_patch_pca(images)
    # Three pairs side by side, two of 256 pixels and one of 128.
    assert picture.width == 2 * 256 + 2 + 12 + 2 * 256 + 2 + 12 + 2 * 128 + 2 + 2 * 28
    assert 256 < picture.height < 256 + 200
