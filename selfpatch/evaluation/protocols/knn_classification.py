"""Settings of k-nearest-neighbour classification."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Distinct, NonEmpty, Positive

# "auto": the class token of a model that has one, else the mean of its patch tokens.
ImageVector = Literal["auto", "class_token", "mean", "class_token_and_mean"]


@dataclass(frozen=True)
class KnnClassification(Config):
    """Classes of images by the most similar training images, nothing trained. The defaults are DINO's protocol."""

    # short side in pixels to which images are resized before the center crop
    resize_size: Annotated[int, Positive] = 256
    # side of the center crop in pixels, rounded down to a multiple of the patch size
    image_size: Annotated[int, Positive] = 224
    # feature vector of an image; auto: the class token if the model has one, else the mean of its patch tokens
    vector: ImageVector = "auto"
    # k: numbers of neighbors, each scored by itself; those above the number of training images are left out
    num_neighbors: Annotated[tuple[int, ...], NonEmpty, Positive, Distinct] = (10, 20, 100, 200)
    # temperature of the votes: a neighbor votes with exp(cosine similarity / temperature)
    temperature: Annotated[float, Positive] = 0.07
    # number of images encoded at once
    batch_size: Annotated[int, Positive] = 64
    # largest number of images of each split, the same number of every class, spread evenly; None: all
    max_images: Annotated[int | None, Positive] = None

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.resize_size >= self.image_size,
            "resize_size",
            f"it must be at least image-size, the side of the center crop, which is {self.image_size}",
        )

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "a k above the number of training images is left out, where the program stops",
            "of classes with equal votes the first one counts, and one without a vote never does, where the program's "
            "order is arbitrary",
        )


PRESETS = {
    "dino": KnnClassification(),
    # nobody's protocol: for trials
    "quick": KnnClassification(resize_size=146, image_size=128, num_neighbors=(10, 20), max_images=500),
}
