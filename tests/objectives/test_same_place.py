"""The same place in two crops: against points taken one by one, and by what must hold for any two crops."""

import pytest
import torch

from selfpatch.objectives.same_place import in_crop, overlap, sample_region, shown_patches
from tests.reference.plain_same_place import mean_token, shown_by

GRID = (4, 5)
BOX, FLIPPED = [40.0, 20, 100, 80], [100.0, 20, 40, 80]
PAIRS = {
    "itself": (BOX, BOX),
    "shifted": (BOX, [52.0, 35, 112, 95]),
    "flipped": (BOX, FLIPPED),
    "both flipped": (FLIPPED, [120.0, 10, 60, 70]),
    "only the own one flipped": (FLIPPED, [31.0, 17, 97, 99]),
    "a small part": ([0.0, 0, 200, 160], BOX),
    "a large whole": (BOX, [200.0, 0, 0, 160]),
    "above and left": (BOX, [3.0, 1, 60, 50]),
    "apart": (BOX, [150.0, 90, 190, 120]),
}


def regions_of(box, other):
    return in_crop(torch.tensor([box]), torch.tensor([other]))


def tokens_of(grid=GRID, seed=0):
    return torch.randn(1, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pair", PAIRS)
def test_what_the_other_crop_shows_equals_points_one_by_one(pair):
    own, other = PAIRS[pair]
    tokens, regions = tokens_of(), regions_of(own, other)
    sampled, shown = sample_region(tokens, GRID, regions, GRID)[0], shown_patches(regions, GRID)[0]
    for patch in range(GRID[0] * GRID[1]):
        expected = shown_by(tokens[0], GRID, own, other, patch)
        assert bool(shown[patch]) == (expected is not None), patch
        if expected is not None:
            torch.testing.assert_close(sampled[patch], expected, rtol=1e-5, atol=1e-5)
    assert shown.any() == (pair != "apart")


def test_a_crop_at_its_own_place_is_itself_and_flipped_it_is_mirrored():
    tokens = tokens_of()
    for box in (BOX, FLIPPED):
        assert torch.equal(sample_region(tokens, GRID, regions_of(box, box), GRID), tokens)
        assert shown_patches(regions_of(box, box), GRID).all()
    mirrored = tokens.unflatten(1, GRID).flip(2).flatten(1, 2)
    for own, other in ((BOX, FLIPPED), (FLIPPED, BOX)):
        assert torch.equal(sample_region(tokens, GRID, regions_of(own, other), GRID), mirrored)


@pytest.mark.parametrize("pair", PAIRS)
def test_tokens_that_say_where_they_are_say_the_same_in_both_crops(pair):
    """A patch of the other crop holds its middle's place in the image, so a sample inside of it holds that of its own."""

    def middles(box):
        rows, columns = GRID
        x = box[0] + (box[2] - box[0]) * (torch.arange(columns) + 0.5) / columns
        y = box[1] + (box[3] - box[1]) * (torch.arange(rows) + 0.5) / rows
        return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).flatten(0, 1)

    own, other = PAIRS[pair]
    sampled = sample_region(middles(other)[None], GRID, regions_of(own, other), GRID)[0]
    low, high = middles(other).amin(dim=0), middles(other).amax(dim=0)
    # Half a patch within the border, where nothing is continued.
    half = torch.tensor([abs(own[2] - own[0]) / GRID[1], abs(own[3] - own[1]) / GRID[0]]) / 2
    inner = ((middles(own) - half >= low) & (middles(own) + half <= high)).all(dim=-1)
    torch.testing.assert_close(sampled[inner], middles(own)[inner], rtol=1e-5, atol=1e-3)
    assert inner.any() or pair in ("apart", "a small part", "above and left", "shifted", "only the own one flipped")


def test_overlap_on_a_grid_of_its_own_equals_points_one_by_one():
    """As NeCo takes it: the part that both show, read the same way round in both."""
    for own, other in PAIRS.values():
        both = overlap(torch.tensor([own]), torch.tensor([other]))
        left, top, right, bottom = both[0].tolist()
        if right <= left or bottom <= top:
            assert (own, other) == PAIRS["apart"]
            continue
        for box in (own, other):
            tokens = tokens_of(seed=1)
            sampled = sample_region(tokens, GRID, in_crop(both, torch.tensor([box])), (3, 2))[0]
            for place in range(6):
                row, column = divmod(place, 2)
                across = left + (right - left) * column / 2, left + (right - left) * (column + 1) / 2
                down = top + (bottom - top) * row / 3, top + (bottom - top) * (row + 1) / 3
                expected = mean_token(tokens[0], GRID, box, across, down)
                torch.testing.assert_close(sampled[place], expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_tokens_within_the_region():
    tokens = tokens_of((4, 4)).requires_grad_()
    sample_region(tokens, (4, 4), torch.tensor([[0.0, 0.0, 0.5, 0.5]]), (2, 2)).sum().backward()
    assert torch.equal(
        tokens.grad[0, :, 0].unflatten(0, (4, 4)) > 0, torch.arange(4)[:, None].maximum(torch.arange(4)) < 2
    )
