"""Settings of linear classification."""

from dataclasses import dataclass, replace

from selfpatch.config import check
from selfpatch.evaluation.protocols.knn_classification import ImageVector
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class LinearClassification:
    """Linear layers trained on frozen vectors of images; the best of them counts. The defaults are DINOv2's."""

    # short side in pixels that validation images are resized to before the middle is cut out
    resize_size: int = 256
    # side of that middle square and of training crops in pixels, rounded down to a multiple of the patch size
    image_size: int = 224
    # what stands for an image, one layer each; auto: the class token alone and with the mean of the patch tokens, or
    # that mean where there is no class token
    vectors: tuple[ImageVector, ...] = ("auto",)
    # of batches of 256, in proportion to the batch; every vector gets a layer for each
    lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    # of the optimizer, SGD; learning rates fall to 0 by half a cosine
    steps: int = 12_500
    # training crops a step; the published numbers took 128 on each of 8 GPUs
    batch_size: int = 128
    # of SGD
    momentum: float = 0.9
    # of SGD, on weights and biases alike
    weight_decay: float = 0.0
    # share of a training image that a crop covers, uniform between the two
    crop_scale: tuple[float, float] = (0.08, 1.0)
    # of a mirror image
    hflip_prob: float = 0.5
    # of the layers' start, the order of the images and their crops
    seed: int = 0
    # at most so many images of each split, as many of every class, spread evenly; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(self, "image_size", "steps", "batch_size", "max_images")
        check(
            self.resize_size >= self.image_size,
            f"resize-size is {self.resize_size}, less than image-size {self.image_size}, which is cut out of it",
        )
        for name in ("vectors", "lrs"):
            values = getattr(self, name)
            check(len(values) > 0, f"{name} is empty; give one at least")
            check(len(set(values)) == len(values), f"{name} is {values}; give each once")
        check(min(self.lrs) > 0, f"lrs is {self.lrs}; all must be above 0")
        check(0 <= self.momentum < 1, f"momentum is {self.momentum}; it must be in [0, 1)")
        check(0 <= self.hflip_prob <= 1, f"hflip-prob is {self.hflip_prob}; it is a probability in [0, 1]")
        low, high = self.crop_scale
        check(0 < low <= high <= 1, f"crop-scale is ({low}, {high}); 0 < low <= high <= 1 is needed")
        for name in ("weight_decay", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")


DINOV2 = LinearClassification()
PRESETS = {
    "dinov2": DINOV2,
    # as its command runs it by default: 8 GPUs
    "dinov2-8-gpus": replace(DINOV2, batch_size=8 * 128),
    # nobody's protocol: for trials
    "quick": LinearClassification(
        resize_size=146, image_size=128, lrs=(1e-3, 1e-2, 0.1), steps=200, batch_size=16, max_images=500
    ),
}
