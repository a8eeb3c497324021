"""Options of `selfpatch visualize`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.cli.command import Command
from selfpatch.cli.options import Device, Images, Mean, Model, Network, NumChannels, NumHeads, Out, Std
from selfpatch.config.images import ShownChannels
from selfpatch.config.ranges import Config, NonNegative, Odd, Positive


@dataclass(frozen=True)
class Visualize(Config):
    """Draw the patch tokens of a model: joint PCA, similarity to one patch, SelfPatch's positives, attention."""

    model: Model
    images: Images
    out: Out
    # number of images, spread evenly over the folder
    count: Annotated[int, Positive] = 6
    # short side of the images in pixels as the model gets them; None: twice the size the model was built for
    image_size: Annotated[int | None, Positive] = None
    # x and y of a pixel in the first image, whose patch all others are compared with; None: the center of each image
    pixel: Annotated[tuple[int, int] | None, NonNegative] = None
    # number of positives that SelfPatch selects; None: that of the run, else 4
    num_positives: Annotated[int | None, Positive] = None
    # side in patches of the window in which SelfPatch looks for positives; None: that of the run, else 3
    window_size: Annotated[int | None, Odd] = None
    # neighbors beyond the image's border: from the opposite side (circular), or none (none); None: those of the run,
    # else circular
    padding_mode: Literal["circular", "none"] | None = None
    # channels to show as red, green and blue, counted from 0; None: those of the run, else the first three
    shown_channels: ShownChannels = None
    num_heads: NumHeads = None
    network: Network = None
    num_channels: NumChannels = None
    mean: Mean = None
    std: Std = None
    device: Device = "auto"


COMMAND = Command("draw the patch tokens of a model", lambda _: Visualize, "selfpatch.commands.visualize:visualize")
