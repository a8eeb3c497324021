"""Settings of object discovery."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Fraction, Positive


@dataclass(frozen=True)
class ObjectDiscovery(Config):
    """One box per image around its most salient object, nothing trained. The defaults are LOST's protocol."""

    # split of the data, as Pascal VOC's list or COCO's file is called; None: trainval, or val2017
    split: str | None = field(default=None, compare=False)  # a result says which one was found
    # short side in pixels to which images are resized; None: their own size, as published
    image_size: Annotated[int | None, Positive] = None
    # features of the patches: the keys of the last attention, or the tokens after the final norm
    features: Literal["keys", "tokens"] = "keys"
    # k: number of patches of the lowest degrees, of which those similar to the seed extend it to the whole object
    num_candidates: Annotated[int, Positive] = 100
    # smallest IoU with any true box at which the predicted box counts as correct
    min_iou: Annotated[float, Fraction] = 0.5
    # leave out objects that VOC calls difficult or truncated, and images that have no others
    skip_hard: bool = False
    # largest number of images, spread evenly over the split; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        return (
            "images without an object are left out of every data set, not only of some",
            "of patches of equal degree the first one counts, where the program's order is arbitrary",
            "a box whose IoU equals min-iou to the last bit counts",
            "COCO means val2017, or the split that is named; published are 20,000 images of train2014 (COCO20k)",
        )


PRESETS = {
    "lost": ObjectDiscovery(),
    # nobody's protocol: for trials
    "quick": ObjectDiscovery(image_size=320, max_images=100),
}
