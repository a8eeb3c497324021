"""Settings of k-nearest-neighbour classification."""

from dataclasses import dataclass
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive

# "auto": the class token of a model that has one, else the mean of its patch tokens.
ImageVector = Literal["auto", "class_token", "mean", "class_token_and_mean"]


@dataclass(frozen=True)
class KnnClassification:
    """Classes of images by the most similar training images, nothing trained. The defaults are DINO's protocol."""

    # short side in pixels that images are resized to before the middle is cut out
    resize_size: int = 256
    # side of that middle square in pixels, rounded down to a multiple of the patch size
    image_size: int = 224
    # what stands for an image; auto: the class token if the model has one, else the mean of its patch tokens
    vector: ImageVector = "auto"
    # k, each scored by itself; those above the number of training images are left out
    num_neighbors: tuple[int, ...] = (10, 20, 100, 200)
    # a neighbour votes with exp(cosine / temperature)
    temperature: float = 0.07
    # images encoded at once
    batch_size: int = 64
    # at most so many images of each split, as many of every class, spread evenly; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "temperature", "batch_size", "max_images")
        check(
            self.resize_size >= self.image_size,
            f"resize-size is {self.resize_size}, less than image-size {self.image_size}, which is cut out of it",
        )
        ks = self.num_neighbors
        check(len(ks) > 0 and min(ks) > 0, f"num-neighbors is {ks}; give one number at least, all above 0")
        check(len(set(ks)) == len(ks), f"num-neighbors is {ks}; give each number once")


PRESETS = {
    "dino": KnnClassification(),
    # nobody's protocol: for trials
    "quick": KnnClassification(resize_size=146, image_size=128, num_neighbors=(10, 20), max_images=500),
}
