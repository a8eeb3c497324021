"""Settings of video segmentation."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import Config, Finite, NonNegative, Positive, Range


@dataclass(frozen=True)
class VideoSegmentation(Config):
    """Labels of the first frame propagated through a video by similar patches, nothing trained; by default as DINO."""

    # short side of the frames in pixels
    image_size: Annotated[int, Positive] = 480
    # number of pixels to a multiple of which the long side, in proportion to the short one, is rounded down
    long_side_multiple: Annotated[int, Positive] = 64
    # normalize patches by the backbone's own final norm, as DINO does; SelfPatch's copy of the program takes the last
    # block as it is, and so does this task wherever that norm came from SelfPatch's aggregator
    final_norm: bool = True
    # number of preceding frames that labels are propagated from, besides the first frame
    num_last_frames: Annotated[int, NonNegative] = 7
    # radius of the neighborhood that labels are propagated from, in patches; 0: unlimited
    radius: Annotated[int, NonNegative] = 12
    # k: number of most similar patches, over all those frames together, that labels are propagated from
    num_neighbors: Annotated[int, Positive] = 5
    # temperature of the weights exp(cosine similarity / temperature) of the neighbors
    temperature: Annotated[float, Positive] = 0.1
    # mean of each channel that frames are normalized with, whatever the model was trained with
    mean: Annotated[tuple[float, float, float], Finite] = (0.485, 0.456, 0.406)
    # standard deviation of each channel that frames are normalized with; published scores have 0.228, where ImageNet's
    # first number is 0.229
    std: Annotated[tuple[float, float, float], Positive] = (0.228, 0.224, 0.225)
    # number of frames encoded at once
    batch_size: Annotated[int, Positive] = 4
    # largest number of videos, spread evenly over the list; None: all
    max_videos: Annotated[int | None, Positive] = None
    # largest number of frames of each video, from its start, at least 3, as the first and the last are not scored;
    # None: all
    max_frames: Annotated[int | None, Range(at_least=3)] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "void pixels of the first annotation are background to the propagation, not an object of their own",
            "a decay that the official toolkit makes nan (above 256 frames) is left out",
        )


PRESETS = {
    # facebookresearch/dino eval_video_segmentation.py
    "dino": VideoSegmentation(),
    # alinlab/SelfPatch eval_video_segmentation.py: its vision transformer returns the last block without a norm
    "selfpatch": VideoSegmentation(final_norm=False),
    # nobody's protocol: for trials
    "quick": VideoSegmentation(image_size=240, max_videos=5, max_frames=20),
}
