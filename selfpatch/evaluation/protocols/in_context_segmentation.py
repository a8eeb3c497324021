"""Settings of in-context segmentation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Finite, Positive, Seed


@dataclass(frozen=True)
class InContextSegmentation(Config):
    """Labels by the nearest training patches, nothing trained (Hummingbird).

    The defaults score as segmentation is scored elsewhere, hummingbird-program as open-hummingbird-eval does.
    """

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
    # label of pixels without a class in the memory bank: "left_out", or "class_0" as in the program: the background, or
    # in ADE20K a class of its own, the 151st
    void: Literal["left_out", "class_0"] = "left_out"
    # mIoU that is the headline: "direct", or "matched" (Hungarian) as in the program
    headline: Literal["direct", "matched"] = "direct"
    # classes that the mean is over: those "occurring" in masks or predictions, or "all" as in the program
    mean_over: Literal["occurring", "all"] = "occurring"
    # size at which masks are compared: their "original" one, or that of the "input" as in the program
    score_size: Literal["original", "input"] = "original"
    # mean of each channel that images are normalized with; None: the model's own
    mean: Annotated[tuple[float, float, float] | None, Finite] = None
    # standard deviation of each channel that images are normalized with; None: the model's own
    std: Annotated[tuple[float, float, float] | None, Positive] = None
    # number of images encoded at once
    batch_size: Annotated[int, Positive] = 16
    # seed of the patches that the memory bank keeps
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        differs = [
            "training images are not augmented; the program crops them at scales of 0.5 to 2 and jitters their colors, "
            "twice for its table",
            "neighbors are exact, where the program searches approximately",
        ]
        if self.void == "left_out":
            differs.append(
                "pixels without a class have no label in the memory, where the program takes them for class 0"
            )
        if self.headline == "direct":
            differs.append("the headline is the direct mIoU; the program's is mIoU-matched, after a Hungarian matching")
        if self.mean_over == "occurring":
            differs.append("the mean is over classes that occur; the program counts the others as 0")
        if self.score_size == "original":
            differs.append("masks are scored at their own size, where the program scores at that of the input")
        if self.std is None:
            differs.append("images are normalised by the model's own numbers; the program divides blue by 0.255")
        return tuple(differs)


PRESETS = {
    "hummingbird": InContextSegmentation(),
    # vpariza/open-hummingbird-eval, whose README's table these numbers are to be compared with
    "hummingbird-program": InContextSegmentation(
        void="class_0",
        headline="matched",
        mean_over="all",
        score_size="input",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.255),  # hbird/utils/transforms.py; ImageNet's last number is 0.225
    ),
    # nobody's protocol: for trials
    "quick": InContextSegmentation(image_size=224, memory_size=10_240, max_images=200),
}
