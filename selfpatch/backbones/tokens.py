"""What every backbone returns, and the legend of axis letters used in the whole package.

    B images        V views (crops)   N patch tokens     D embedding     K prototypes
    P positives     M neighbours      C classes          H W pixels      R S rows and columns of the patch grid

`V*B` is crop-major: all images of crop 0, then all images of crop 1, and so on.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Tokens(NamedTuple):
    """The tokens of a batch of images, all of one size."""

    cls_token: Float[Tensor, "B D"] | None
    patch_tokens: Float[Tensor, "B N D"]  # row-major, N = rows * columns
    grid_size: tuple[int, int]  # (rows, columns)


class Stage(NamedTuple):
    """A place in a network where its tokens can be taken as a map."""

    embed_dim: int
    stride_px: tuple[int, int]  # pixels of the image that a place of the map stands for: (rows, columns)
