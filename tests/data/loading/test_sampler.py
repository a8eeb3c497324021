"""The order of images and the random numbers of a sample are functions of seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.data.loading.sampler import EpochSampler, sample_rng


@given(
    num_images=st.integers(1, 200), batch_size=st.integers(1, 200), seed=st.integers(0, 2**40), epoch=st.integers(0, 9)
)
def test_an_epoch_shows_each_image_at_most_once(num_images, batch_size, seed, epoch):
    if num_images < batch_size:
        with pytest.raises(ValueError, match="do not fill one batch"):
            EpochSampler(num_images, batch_size, seed)
        return
    sampler = EpochSampler(num_images, batch_size, seed)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    shown = np.concatenate([sampler.indices(step) for step in steps])
    assert {sampler.epoch(step) for step in steps} == {epoch}
    assert len(shown) == len(set(shown)) == num_images // batch_size * batch_size
    assert 0 <= shown.min() <= shown.max() < num_images


def test_any_order_of_asking_gives_the_same():
    steps = [7, 0, 23, 8, 7, 100, 1]
    sampler = EpochSampler(50, 6, seed=3)
    for step in steps:
        np.testing.assert_array_equal(sampler.indices(step), EpochSampler(50, 6, seed=3).indices(step))


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
