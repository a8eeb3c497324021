"""The order of images and the random numbers of a sample are functions of seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.data.loading import sampler as sampler_module
from selfpatch.data.loading.sampler import EpochSampler, sample_rng


@given(
    num_images=st.integers(1, 200),
    batch_size=st.integers(1, 200),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
    block_size=st.none() | st.integers(1, 250),
)
def test_an_epoch_shows_each_image_at_most_once(num_images, batch_size, seed, epoch, block_size):
    if num_images < batch_size:
        with pytest.raises(ValueError, match="do not fill one batch"):
            EpochSampler(num_images, batch_size, seed)
        return
    sampler = EpochSampler(num_images, batch_size, seed, block_size=block_size)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    shown = np.concatenate([sampler.indices(step) for step in steps])
    assert {sampler.epoch(step) for step in steps} == {epoch}
    assert len(shown) == len(set(shown)) == num_images // batch_size * batch_size
    assert 0 <= shown.min() <= shown.max() < num_images


@pytest.mark.parametrize("block_size", [None, 7])
def test_any_order_of_asking_gives_the_same(block_size, monkeypatch):
    monkeypatch.setattr(sampler_module, "BLOCKS_AT_ONCE", 2)
    steps = [7, 0, 23, 8, 7, 100, 1]
    sampler = EpochSampler(50, 6, seed=3, block_size=block_size)
    for step in steps:
        fresh = EpochSampler(50, 6, seed=3, block_size=block_size)
        np.testing.assert_array_equal(sampler.indices(step), fresh.indices(step))


def test_blocks_are_read_in_long_pieces_and_mixed(monkeypatch):
    """Of 1,000 images in blocks of 10, four of them at once: 40 images after each other are of four blocks."""
    monkeypatch.setattr(sampler_module, "BLOCKS_AT_ONCE", 4)
    sampler = EpochSampler(1003, 17, seed=0, block_size=10)
    for epoch in (0, 1):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        shown = np.concatenate([sampler.indices(step) for step in steps])
        near = [len(set(shown[start : start + 40] // 10)) for start in range(0, 960, 40)]
        assert near[0] == 4 and max(near) <= 8  # the shorter block, of three images, shifts those behind it
        assert (np.diff(shown[:40]) == 1).sum() < 10
        assert len(set(shown[:400] // 10)) <= 44
    first = [sampler.indices(0), sampler.indices(sampler.steps_per_epoch)]
    assert len(set(first[0].tolist()) & set(first[1].tolist())) < 10
    # Memory: a permutation of blocks and one window, however many images there are.
    many = EpochSampler(20_000_000, 1024, seed=0, block_size=10_000)
    many.indices(12_345)
    assert len(many._order_of[1]) == 2000 and len(many._window_of[2]) == 4 * 10_000


def test_epochs_and_seeds_differ():
    sampler = EpochSampler(1000, 1000, seed=0)
    orders = [sampler.indices(0), sampler.indices(1), EpochSampler(1000, 1000, seed=1).indices(0), np.arange(1000)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).sum() < 10


def test_what_an_epoch_drops_differs():
    sampler = EpochSampler(11, 5, seed=0)
    dropped = {
        (set(range(11)) - {*sampler.indices(2 * epoch), *sampler.indices(2 * epoch + 1)}).pop() for epoch in range(200)
    }
    assert dropped == set(range(11))


def test_sample_rng_is_a_function_of_all_three():
    def numbers(*key: int) -> tuple:
        return tuple(sample_rng(*key).random(4))

    keys = [(seed, epoch, index) for seed in (0, 1, 2**33) for epoch in (0, 1, 5) for index in (0, 1, 10**7)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers(1, 2, 3) == numbers(1, 2, 3)


def test_first_random_numbers_of_samples_are_uniform():
    firsts = np.array([sample_rng(0, 3, index).random() for index in range(4000)])
    counts, _ = np.histogram(firsts, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 44  # chi-square, 19 degrees of freedom, p = 0.001


def test_negative_seed():
    with pytest.raises(ValueError, match="seed is -1"):
        EpochSampler(10, 2, seed=-1)
