"""The order of images and the random numbers of their crops: pure functions of seed and step.

So a run that goes on at any step, with another number of workers or ranks, sees the same crops bit for bit, and the
only data state in a checkpoint is the step.
"""

import numpy as np
from jaxtyping import Int

from selfpatch.errors import UserError

# First word of what numpy is seeded with. Orders and samples must not share random numbers, and to numpy [3, 1] and
# [3, 1, 0] are the same seed.
_ORDER, _SAMPLE = 1, 2


class EpochSampler:
    """Shuffles the images anew in every epoch and splits them into whole batches.

    The images beyond the last whole batch stay unseen in that epoch (at most batch_size - 1, others in every epoch), as
    with DINO's drop_last.

    Args:
        batch_size: images per step over all ranks.

    Raises:
        UserError: there are fewer images than a batch holds, or the seed is negative.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        if num_images < batch_size:
            raise UserError(
                f"{num_images} images do not fill one batch of {batch_size}; add images, or make the batch smaller "
                "(optim.batch-size)"
            )
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be 0 or more")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = num_images // batch_size
        self._order_of = (-1, np.empty(0, np.int64))  # the last epoch asked for, and its permutation

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Int[np.ndarray, "{self.batch_size}"]:
        """The images of a step. The permutation of the epoch asked for last is kept."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order_of[0] != epoch:
            order = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.num_images)
            self._order_of = (epoch, order)
        return self._order_of[1][place * self.batch_size : (place + 1) * self.batch_size]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one image in one epoch."""
    return np.random.default_rng([_SAMPLE, seed, epoch, index])
