"""Settings of in-context segmentation."""

from dataclasses import dataclass
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class InContextSegmentation:
    """Labels by the nearest training patches, nothing trained (hummingbird)."""

    # side of the input in pixels, rounded down to a multiple of the patch size: 504 at patch 14
    image_size: int = 512
    # "square" as published; "keep_aspect": image_size is the short side
    resize: Literal["square", "keep_aspect"] = "square"
    # labelled patches kept; published at 1,024 x 10^2, 10^3 and 10^4
    memory_size: int = 102_400
    # k
    num_neighbors: int = 30
    # of the softmax over the cosines of the neighbours
    temperature: float = 0.02
    # images encoded at once
    batch_size: int = 16
    # which patches are kept
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "memory_size", "num_neighbors", "temperature", "batch_size", "max_images")
        check(self.seed >= 0, f"seed is {self.seed}; it cannot be negative")


PRESETS = {
    "hummingbird": InContextSegmentation(),
    # nobody's protocol: for trials
    "quick": InContextSegmentation(image_size=224, memory_size=10_240, max_images=200),
}
