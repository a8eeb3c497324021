"""The crops of a batch of images, with the color augmentation that is still to be applied."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxtyping import Float, Real
from torch import Tensor

from selfpatch.data.augmentation.params import BatchedColorParams


class Crops(NamedTuple):
    """Crops of B images: V global and U local ones of each, and what objectives need beside them.

    Levels from 0 to 255 in uint8, or values from 0 to 1 in float32.
    """

    global_crops: Real[Tensor, "V B C H W"]
    local_crops: Real[Tensor, "U B C R S"] | None
    # For `apply_color_batch`, [V, B] and [U, B]; None: colors are augmented already.
    global_color: BatchedColorParams | None = None
    local_color: BatchedColorParams | None = None
    # The global crops with colors drawn anew: made already, or the parameters by which they are made of `global_crops`.
    recolored_crops: Real[Tensor, "V B C H W"] | None = None
    recolored_color: BatchedColorParams | None = None
    # Where edges lie in the image: left, top, right, bottom in pixels; of a flipped crop left > right.
    global_boxes: Float[Tensor, "V B 4"] | None = None
    local_boxes: Float[Tensor, "U B 4"] | None = None

    @property
    def num_images(self) -> int:
        return self.global_crops.shape[1]

    def tensors(self) -> Iterator[Tensor]:
        for part in self:
            if isinstance(part, Tensor):
                yield part
            elif part is not None:
                yield from part

    def map(self, function: Callable[[Tensor], Tensor]) -> "Crops":
        """Apply a function to every tensor, those of the parameters included."""
        mapped = {
            name: function(part) if isinstance(part, Tensor) else part.map(function)
            for name, part in self._asdict().items()
            if part is not None
        }
        return self._replace(**mapped)

    def slice_images(self, start: int, stop: int) -> "Crops":
        """The crops of images start to stop - 1, in the same memory."""
        return self.map(lambda part: part[:, start:stop])

    def copy_(self, crops: "Crops") -> None:
        """Copy the crops of as many images into this memory."""
        for own, other in zip(self.tensors(), crops.tensors(), strict=True):
            own.copy_(other)
