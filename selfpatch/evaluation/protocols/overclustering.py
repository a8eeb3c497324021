"""Settings of overclustering."""

from dataclasses import dataclass
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class Overclustering:
    """Classes by k-means on frozen patch tokens: labels only name the clusters. The defaults are Leopart's protocol."""

    # side of the square input in pixels, rounded down to a multiple of the patch size
    image_size: int = 448
    # side in pixels of the masks and cluster maps that are compared
    mask_size: int = 100
    # of the standardised tokens that are clustered; fewer where tokens are narrower
    num_components: int = 50
    # K; "classes", or a K that is the number of classes: one cluster a class (Hungarian); else many to one
    num_clusters: tuple[int | Literal["classes"], ...] = ("classes", 300, 500)
    # clusterings of each K, whose mean and standard deviation are reported
    num_seeds: int = 5
    # starts of k-means in each clustering; the one with the smallest distances counts
    num_restarts: int = 5
    # iterations of k-means at most
    num_iterations: int = 100
    # patches that k-means is fitted to, K times so many, drawn at random; all are assigned
    max_patches_per_cluster: int = 256
    # images encoded at once
    batch_size: int = 16
    # of the first clustering; the next ones follow it
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(
            self, "image_size", "mask_size", "num_components", "num_seeds", "num_restarts", "num_iterations",
            "max_patches_per_cluster", "batch_size", "max_images",
        )  # fmt: skip
        check(self.seed >= 0, f"seed is {self.seed}; it cannot be negative")
        clusters = self.num_clusters
        check(len(clusters) > 0, "num-clusters is empty; give one K at least, or classes")
        check(len(set(clusters)) == len(clusters), f"num-clusters is {clusters}; give each K once")
        check(
            all(k == "classes" or k > 1 for k in clusters),
            f"num-clusters is {clusters}; two clusters are the fewest, and classes is the only word",
        )


PRESETS = {
    "leopart": Overclustering(),
    # nobody's protocol: for trials
    "quick": Overclustering(
        image_size=224, num_clusters=("classes", 100), num_seeds=2, num_restarts=2, num_iterations=30, max_images=100
    ),
}
