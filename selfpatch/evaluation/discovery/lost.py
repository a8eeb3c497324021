"""LOST: the object of an image, by the similarities of its patches alone."""

from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int64
from torch import Tensor


class LostResult(NamedTuple):
    """Coordinates in patches."""

    box: tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive
    seed: tuple[int, int]  # row, column
    degree: Int64[np.ndarray, "R S"]  # of every patch: to how many others it is similar


def find_object(features: Float[Tensor, "D R S"], *, num_candidates: int) -> LostResult:
    """Box of the connected patches around the seed that are similar to the seed and its similar candidates.

    Two patches are similar if their dot product is positive; the degree of a patch is the number of patches similar to
    it. The seed is the patch of lowest degree: patches of an object resemble each other, and there are fewer of them
    than of background. The seed is expanded to those of the num_candidates patches of lowest degree that are similar to
    it; the object is the component (connected by edges, not corners) with the seed of all patches with a positive sum
    of dot products with these.

    Source: Localizing Objects with Self-Supervised Transformers and no Labels (BMVC 2021); valeoai/LOST
    object_discovery.py.
    Differs: of equal degrees the first patch counts, where the order of the program is arbitrary; a seed whose features
    are 0 is a box of its own, where the program stops.
    """
    vectors = features.flatten(1).T  # [N, D]
    similarity = vectors @ vectors.T  # [N, N]
    is_similar = similarity > 0
    degree = is_similar.sum(dim=1) - is_similar.diagonal().long()
    order = degree.argsort(stable=True)
    seed, candidates = order[0], order[:num_candidates]
    similar_seeds = candidates[is_similar[seed, candidates]]
    in_object = similarity[similar_seeds].sum(dim=0) > 0
    in_object[seed] = True

    grid_size = (features.shape[1], features.shape[2])
    row, column = divmod(int(seed), grid_size[1])
    parts: Any = scipy.ndimage.label(in_object.unflatten(0, grid_size).cpu().numpy())[0]  # type: ignore[index]
    rows, columns = np.nonzero(parts == parts[row, column])
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return LostResult(box, (row, column), degree.unflatten(0, grid_size).cpu().numpy())
