import numpy as np
import pytest
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.config import SelfPatchConfig
from selfpatch.visualization import positives
from selfpatch.visualization.positives import draw_positives, neighborhoods, spread_patches
from selfpatch.visualization.sheet import EncodedImage

GRID = (4, 6)


def random_tokens(grid_size: tuple[int, int] = GRID) -> Tokens:
    return Tokens(
        None, torch.randn(1, grid_size[0] * grid_size[1], 8, generator=torch.Generator().manual_seed(0)), grid_size
    )


@pytest.mark.parametrize("padding_mode", ["circular", "none"])
def test_neighbours_and_the_best_of_them(padding_mode):
    tokens = random_tokens()
    vectors = tokens.patch_tokens[0].double().numpy()
    config = SelfPatchConfig(num_positives=3, padding_mode=padding_mode)
    for around in neighborhoods(tokens, list(range(24)), config):
        row, column = divmod(around.patch, 6)
        window = []
        for r in (row - 1, row, row + 1):
            for c in (column - 1, column, column + 1):
                if (r, c) != (row, column):
                    inside = 0 <= r < 4 and 0 <= c < 6
                    window.append(r % 4 * 6 + c % 6 if inside or padding_mode == "circular" else None)
        assert around.window == window

        def similarity(patch, center=vectors[around.patch]):
            return vectors[patch] @ center / (np.linalg.norm(vectors[patch]) * np.linalg.norm(center))

        best = sorted((patch for patch in window if patch is not None), key=similarity, reverse=True)[:3]
        assert around.positives == best
        assert around.similarity == pytest.approx([similarity(patch) for patch in best], abs=1e-6)


@pytest.mark.parametrize("grid_size", [(3, 3), (4, 6), (28, 28), (3, 40)])
def test_spread_patches(grid_size):
    patches = spread_patches(grid_size)
    assert len(set(patches)) == 5
    assert patches[-1] == grid_size[0] * grid_size[1] - 1
    assert all(0 <= patch < grid_size[0] * grid_size[1] for patch in patches)


@pytest.mark.parametrize(("padding_mode", "window_size"), [("circular", 3), ("none", 3), ("none", 5)])
def test_what_is_drawn_is_what_is_found(padding_mode, window_size, monkeypatch):
    """Every patch that is framed, in the overview and in the windows, and every number that is written."""
    grid_size = (6, 8)
    tokens, config = (
        random_tokens(grid_size),
        SelfPatchConfig(num_positives=3, padding_mode=padding_mode, window_size=window_size),
    )
    found = neighborhoods(tokens, [0, 20], config)
    framed, written = [], []
    monkeypatch.setattr(
        positives, "mark_patch", lambda draw, patch, cell, color, width=2: framed.append((patch, color))
    )
    monkeypatch.setattr(positives, "outlined_text", lambda draw, middle, text: written.append(text))
    image = EncodedImage("a.jpg", np.zeros((48, 64, 3), np.uint8), tokens)
    draw_positives([image], config, [0, 20])

    green, yellow = positives.PICKED, positives.CHOSEN
    overview = [(divmod(p, 8), green) for around in found for p in around.positives]
    overview += [(divmod(around.patch, 8), yellow) for around in found]
    assert framed[: len(overview)] == overview
    windows = []
    for around in found:
        window = [*around.window]
        window.insert(len(window) // 2, around.patch)
        windows += [(divmod(window.index(p), window_size), green) for p in around.positives]
        windows += [((window_size // 2, window_size // 2), yellow)]
    assert framed[len(overview) :] == windows
    assert written == ["1", "2"] + [f"{value:.2f}" for around in found for value in around.similarity]


def test_picture_has_a_row_an_image():
    images = [EncodedImage("a.jpg", np.zeros((48, 64, 3), np.uint8), random_tokens((6, 8)))] * 2
    one, two = (draw_positives(images[:n], SelfPatchConfig()) for n in (1, 2))
    assert one.width == two.width == 256 + 5 * 216 + 5 * 12 + 2 * 28
    assert two.height == one.height + 216 + 22 + 12


def test_windows_show_the_pixels_of_their_patches():
    """A wrapped neighbour is shown from the opposite side; one that does not exist stays white."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[40:, 56:] = (200, 100, 50)  # the last patch
    image = EncodedImage("a.jpg", pixels, random_tokens((6, 8)))
    for padding_mode, color in (("circular", (200, 100, 50)), ("none", (255, 255, 255))):
        config = SelfPatchConfig(padding_mode=padding_mode, num_positives=1)
        (around,) = neighborhoods(image.tokens, [0], config)
        around = around._replace(positives=[8], similarity=[0.5])  # its frame is elsewhere
        window = positives._draw_window(image, around, config)
        assert window.getpixel((30, 30)) == color


def test_of_a_window_over_the_whole_image_the_overview_is_all():
    images = [EncodedImage("a.jpg", np.zeros((48, 64, 3), np.uint8), random_tokens((6, 8)))]
    picture = draw_positives(images, SelfPatchConfig(window_size="image"))
    assert picture.width < draw_positives(images, SelfPatchConfig()).width
    (around,) = neighborhoods(images[0].tokens, [9], SelfPatchConfig(window_size="image"))
    assert sorted([*around.window, 9]) == list(range(48))
