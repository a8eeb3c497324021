import numpy as np
import pytest
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.visualization.sheet import EncodedImage
from selfpatch.visualization.similarity_map import draw_similarity_maps, patch_at, similarity_map


def test_equals_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    token_map, query = torch.randn(3, 5, 8, generator=generator), torch.randn(8, generator=generator)
    ours = similarity_map(query, token_map)
    for row in range(3):
        for column in range(5):
            a, b = token_map[row, column].double().numpy(), query.double().numpy()
            assert ours[row, column].item() == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), abs=1e-6)


def test_a_patch_is_most_similar_to_itself():
    token_map = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    ours = similarity_map(token_map[2, 1], 5 * token_map)
    assert ours[2, 1].item() == pytest.approx(1)
    assert ours.argmax().item() == 2 * 4 + 1


@pytest.mark.parametrize(
    ("pixel", "patch"), [((0, 0), (0, 0)), ((639, 479), (5, 7)), ((79, 80), (1, 0)), ((80, 79), (0, 1))]
)
def test_patch_under_a_pixel(pixel, patch):
    assert patch_at(pixel, (480, 640), (6, 8)) == patch


@pytest.mark.parametrize("pixel", [(640, 0), (0, 480), (-1, 0)])
def test_pixel_outside(pixel):
    with pytest.raises(ValueError, match="outside the image, which is 640 wide and 480 high"):
        patch_at(pixel, (480, 640), (6, 8))


def test_picture_has_a_row_a_query():
    images = [
        EncodedImage(f"{i}.jpg", np.zeros((64, 64, 3), np.uint8), Tokens(None, torch.randn(1, 16, 8), (4, 4)))
        for i in range(2)
    ]
    one = draw_similarity_maps(images, [(0, (1, 1))])
    two = draw_similarity_maps(images, [(0, (1, 1)), (1, (3, 0))])
    assert one.width == two.width == 3 * 256 + 2 * 12 + 2 * 28
    assert two.height == one.height + 256 + 22 + 12
