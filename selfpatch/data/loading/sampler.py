"""The order of images and the random numbers of their crops: pure functions of seed and step.

So a run that goes on at any step, with another number of workers or ranks, sees the same crops bit for bit, and the
only data state in a checkpoint is the step.
"""

import numpy as np
from jaxtyping import Int

from selfpatch.errors import UserError

# First word of what numpy is seeded with. Orders and samples must not share random numbers, and to numpy [3, 1] and
# [3, 1, 0] are the same seed.
_ORDER, _SAMPLE, _WINDOW = 1, 2, 3


# Blocks among whose images is shuffled, where blocks are asked for.
BLOCKS_AT_ONCE = 64


class EpochSampler:
    """Shuffles the images anew in every epoch and splits them into whole batches.

    The images beyond the last whole batch stay unseen in that epoch (at most batch_size - 1, others in every epoch), as
    with DINO's drop_last.

    Args:
        batch_size: images per step over all ranks.
        block_size: neighbors that stay near each other, so that shards are read in long pieces: blocks are shuffled,
            and images within BLOCKS_AT_ONCE of them. None: all images are shuffled.

    Raises:
        UserError: there are fewer images than a batch holds, or the seed is negative.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, *, block_size: int | None = None):
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
        self._block_size = block_size
        self._order_of = (-1, np.empty(0, np.int64))  # the last epoch asked for, and the permutation of its blocks
        self._window_of = (-1, -1, np.empty(0, np.int64))  # the last epoch and window, and the images in it

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Int[np.ndarray, "{self.batch_size}"]:
        """The images of a step. What was shuffled last is kept: an epoch's images, or its blocks and one window."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start, stop = place * self.batch_size, (place + 1) * self.batch_size
        if self._block_size is None or self._block_size >= self.num_images:
            return self._order(epoch, self.num_images)[start:stop]
        return self._in_blocks(epoch, start, stop, self._block_size)

    def _order(self, epoch: int, count: int) -> Int[np.ndarray, "_count"]:
        if self._order_of[0] != epoch:
            self._order_of = (epoch, np.random.default_rng([_ORDER, self.seed, epoch]).permutation(count))
        return self._order_of[1]

    def _in_blocks(self, epoch: int, start: int, stop: int, size: int) -> Int[np.ndarray, "_count"]:
        order = self._order(epoch, -(-self.num_images // size))
        # Ends of the windows of blocks; the shorter last block of the images stands anywhere among the others.
        ends = np.minimum(np.arange(BLOCKS_AT_ONCE, len(order) + BLOCKS_AT_ONCE, BLOCKS_AT_ONCE), len(order)) * size
        shorter_at = int(np.flatnonzero(order == len(order) - 1)[0])
        ends[shorter_at // BLOCKS_AT_ONCE :] -= len(order) * size - self.num_images
        parts = []
        while start < stop:
            window = int(np.searchsorted(ends, start, side="right"))
            first = int(ends[window - 1]) if window else 0
            parts.append(self._window(epoch, window, order, size)[start - first : stop - first])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _window(
        self, epoch: int, window: int, order: Int[np.ndarray, "_blocks"], size: int
    ) -> Int[np.ndarray, "_count"]:
        if self._window_of[:2] != (epoch, window):
            blocks = order[window * BLOCKS_AT_ONCE : (window + 1) * BLOCKS_AT_ONCE]
            images = (blocks[:, None] * size + np.arange(size)).ravel()
            images = images[images < self.num_images]
            rng = np.random.default_rng([_WINDOW, self.seed, epoch, window])
            self._window_of = (epoch, window, rng.permutation(images))
        return self._window_of[2]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one image in one epoch."""
    return np.random.default_rng([_SAMPLE, seed, epoch, index])
