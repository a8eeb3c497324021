"""Settings of overclustering."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Distinct, NonEmpty, Positive, Range, Seed


@dataclass(frozen=True)
class Overclustering(Config):
    """Classes by k-means on frozen patch tokens: labels only name the clusters. The defaults are Leopart's protocol."""

    # side of the square images in pixels, rounded down to a multiple of the patch size
    image_size: Annotated[int, Positive] = 448
    # side in pixels of the masks and cluster maps that are compared
    mask_size: Annotated[int, Positive] = 100
    # number of principal components of the standardized tokens that are clustered; fewer where tokens are narrower
    num_components: Annotated[int, Positive] = 50
    # K: numbers of clusters, each scored by itself. "classes", or the number of classes: one cluster per class
    # (Hungarian matching); any other number: many clusters to one class
    num_clusters: Annotated[tuple[int | Literal["classes"], ...], NonEmpty, Range(at_least=2), Distinct] = (
        "classes", 300, 500,
    )  # fmt: skip
    # number of clusterings of each K, whose mean and standard deviation are reported
    num_seeds: Annotated[int, Positive] = 5
    # number of k-means initializations in each clustering, of which the one with the smallest distances counts
    num_restarts: Annotated[int, Positive] = 5
    # largest number of k-means iterations
    num_iterations: Annotated[int, Positive] = 100
    # number of random patches to which k-means is fitted, as a multiple of K; all patches are assigned
    max_patches_per_cluster: Annotated[int, Positive] = 256
    # number of images encoded at once
    batch_size: Annotated[int, Positive] = 16
    # seed of the first clustering; the next ones count up from it
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "PCA sees all tokens, not a draw of them",
            "an empty cluster begins anew at the farthest patch, instead of splitting a large one",
            "a class that is neither in the masks nor predicted is left out of the mean, not counted as 0",
        )


PRESETS = {
    "leopart": Overclustering(),
    # nobody's protocol: for trials
    "quick": Overclustering(
        image_size=224, num_clusters=("classes", 100), num_seeds=2, num_restarts=2, num_iterations=30, max_images=100
    ),
}
