"""Uniform random numbers for the augmentation's random choices."""

from collections.abc import Callable, Iterator

import numpy as np


class BufferedRandom:
    """Draws uniforms 256 at a time: a numpy call costs more than the numbers."""

    def __init__(self, rng: np.random.Generator):
        def numbers() -> Iterator[float]:
            while True:
                yield from rng.random(256).tolist()

        self.random: Callable[[], float] = numbers().__next__


# Its `random()` gives numbers in [0, 1); nothing else is used.
RandomSource = np.random.Generator | BufferedRandom


def uniform(rng: RandomSource, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
