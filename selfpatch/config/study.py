"""Settings of a study: the candidates, the time for them, and how they are scored."""

from dataclasses import dataclass
from typing import Annotated

from selfpatch.config.ranges import Config, Distinct, NonEmpty, Positive


@dataclass(frozen=True)
class StudyConfig(Config):
    """What is compared, with which budget, and by which scores."""

    # candidates to compare, e.g. as-is random or names of recipes; none: with --init-from the weights as they are, the
    # same continued by two recipes, and the small-data recipe from scratch; else random weights and from scratch alone
    candidates: Annotated[tuple[str, ...], Distinct] = ()
    # hours for the whole study; steps of training are chosen for it from a few that are timed
    hours: Annotated[float, Positive] = 2.0
    # number of steps of every training; None: as many as the hours allow, at most as many as the longest recipe has
    steps: Annotated[int | None, Positive] = None
    # number of seeds, each of which trains every candidate once
    seeds: Annotated[int, Positive] = 3
    # label shares to score with: 8 is an eighth of the labeled training images, 1 is all; a share with fewer than two
    # images is left out
    label_shares: Annotated[tuple[int, ...], Positive, Distinct, NonEmpty] = (1, 8, 64)
    # largest number of labeled images of each split, spread evenly over it
    max_images: Annotated[int, Positive] = 500
    # short side in pixels of images that are scored; None: twice the global crop
    image_size: Annotated[int | None, Positive] = None
    # number of steps in which the linear layer is trained, per label share
    linear_steps: Annotated[int, Positive] = 500
    # leave out of pretraining images that look like a validation image, too; if not, only files of the same content
    near_duplicates: bool = True
    # settings of pretraining for every candidate that trains, as name=value: crops.global-size=96 optim.batch-size=32.
    # Those of the backbone are for candidates from scratch alone
    set: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self.require(
            1 in self.label_shares, "label_shares", "1, all labels, must be among them: it decides the ranking"
        )
