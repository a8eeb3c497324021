"""Settings of video segmentation."""

from dataclasses import dataclass

from selfpatch.config import check
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class VideoSegmentation:
    """Labels of the first frame carried through a video by similar patches, nothing trained. The defaults: DINO's."""

    # short side of the frames in pixels
    image_size: int = 480
    # the long side, in proportion, is rounded down to a multiple of this, in pixels
    long_side_multiple: int = 64
    # frames just before the one at hand that labels come from, besides the first
    num_last_frames: int = 7
    # labels come from at most so many rows and columns of patches away; 0: from anywhere
    radius: int = 12
    # k, over all those frames together
    num_neighbors: int = 5
    # of the weights exp(cosine / temperature) of the neighbours
    temperature: float = 0.1
    # that frames are normalised with, whatever the model was trained with
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    # likewise; the first number is not ImageNet's 0.229, and published scores have it
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)
    # frames encoded at once
    batch_size: int = 4
    # at most so many videos, spread evenly over the list; None: all
    max_videos: int | None = None
    # of each video only so many frames, from its start; None: all
    max_frames: int | None = None

    def __post_init__(self):
        check_positive(
            self, "image_size", "long_side_multiple", "num_neighbors", "temperature", "batch_size", "max_videos"
        )
        for name in ("num_last_frames", "radius"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        check(all(value > 0 for value in self.std), f"std is {self.std}; all three must be above 0")
        check(
            self.max_frames is None or self.max_frames >= 3,
            f"max-frames is {self.max_frames}; the first and the last frame are not scored, so at least 3 are needed",
        )


PRESETS = {
    "dino": VideoSegmentation(),
    # nobody's protocol: for trials
    "quick": VideoSegmentation(image_size=240, max_videos=5, max_frames=20),
}
