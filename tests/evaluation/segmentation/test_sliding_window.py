from itertools import pairwise

import pytest
import torch

from selfpatch.evaluation.segmentation.sliding_window import sliding_window, window_starts


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 21, 37])
@pytest.mark.parametrize("stride", [1, 5, 8])
def test_windows_cover_everything_and_stay_inside(length, stride):
    starts = window_starts(length, 8, stride)
    covered = {pixel for start in starts for pixel in range(start, start + 8)}
    assert set(range(length)) <= covered
    assert len(starts) == len(set(starts))
    assert starts[-1] == max(length - 8, 0)
    assert all(b - a <= stride for a, b in pairwise(starts))


def test_windows_of_512_px_every_341():
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1366, 512, 341) == [0, 341, 682, 854]


@pytest.mark.parametrize("size", [(8, 8), (20, 33), (5, 30), (3, 4), (30, 6)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_any_map_of_single_pixels_is_reconstructed(size, batch_size):
    image = torch.randn(3, *size)
    mix = torch.randn(5, 3)

    def predict(windows):
        assert windows.shape[2:] == (8, 12) and len(windows) <= batch_size
        return torch.einsum("cd,bdhw->bchw", mix, windows) + 1

    out = sliding_window(image, predict, window=(8, 12), stride=5, batch_size=batch_size)
    torch.testing.assert_close(out, torch.einsum("cd,dhw->chw", mix, image) + 1)


def test_overlapping_windows_are_averaged():
    calls = iter([0.0, 1.0])
    image = torch.zeros(3, 4, 6)
    out = sliding_window(
        image, lambda windows: torch.full((1, 1, 4, 4), next(calls)), window=(4, 4), stride=2, batch_size=1
    )
    assert out[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
