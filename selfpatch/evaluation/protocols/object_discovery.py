"""Settings of object discovery."""

from dataclasses import dataclass, field
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class ObjectDiscovery:
    """One box an image around what stands out, nothing trained. The defaults are LOST's protocol."""

    # which images, as Pascal VOC's list or COCO's file names them; None: trainval, or val2017
    split: str | None = field(default=None, compare=False)  # a result says which one was found
    # short side in pixels that images are resized to; None: their own size, as published
    image_size: int | None = None
    # of the patches: the keys of the last attention, or the tokens through the final norm
    features: Literal["keys", "tokens"] = "keys"
    # k: patches of the lowest degrees, of which those similar to the seed help to find the rest of the object
    num_candidates: int = 100
    # overlap (IoU) of the box with any true one from which on it counts
    min_iou: float = 0.5
    # whether objects that VOC calls difficult or truncated are left out, and images that have no others
    skip_hard: bool = False
    # at most so many images, spread evenly over the split; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "num_candidates", "max_images")
        check(0 < self.min_iou <= 1, f"min-iou is {self.min_iou}; it must be in (0, 1]")


PRESETS = {
    "lost": ObjectDiscovery(),
    # nobody's protocol: for trials
    "quick": ObjectDiscovery(image_size=320, max_images=100),
}
