"""Settings of in-context segmentation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Positive, Seed


@dataclass(frozen=True)
class InContextSegmentation(Config):
    """Labels by the nearest training patches, nothing trained (Hummingbird)."""

    # side of the images in pixels, rounded down to a multiple of the patch size: 504 at patch 14
    image_size: Annotated[int, Positive] = 512
    # resize images to a "square" (as published), or "keep_aspect": image-size is the short side
    resize: Literal["square", "keep_aspect"] = "square"
    # number of labeled patches kept in the memory bank; published at 1,024 x 10^2, 10^3 and 10^4
    memory_size: Annotated[int, Positive] = 102_400
    # k: number of nearest patches in the memory bank that vote on the label of a patch
    num_neighbors: Annotated[int, Positive] = 30
    # temperature of the softmax over the cosine similarities of the neighbors
    temperature: Annotated[float, Positive] = 0.02
    # number of images encoded at once
    batch_size: Annotated[int, Positive] = 16
    # seed of the patches that the memory bank keeps
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None


PRESETS = {
    "hummingbird": InContextSegmentation(),
    # nobody's protocol: for trials
    "quick": InContextSegmentation(image_size=224, memory_size=10_240, max_images=200),
}
