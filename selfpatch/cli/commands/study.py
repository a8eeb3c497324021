"""Options of `selfpatch study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from selfpatch.cli.command import Command
from selfpatch.cli.options import FLAT, Device, Images, Out
from selfpatch.config.study import StudyConfig


@dataclass(frozen=True)
class Study:
    """Find out which start and which recipe is best on a folder of images, with the labels of a few.

    Candidates are trained at equal budgets and scored by in-context and linear segmentation; it ends in a ranking with
    intervals, and the best model as a file for timm. The same command again goes on where it was.
    """

    images: Images
    out: Out
    labels: Annotated[
        Path,
        arg(
            help="labeled images: ADE20K, Pascal VOC 2012, Cityscapes, or images/ and masks/; none of those for "
            "validation is trained on"
        ),
    ]
    # weights to compare with and to continue: a run folder, an exported file, a checkpoint of another program or
    # timm:NAME.TAG; None: only candidates from scratch, and random weights as the floor
    init_from: str | None = None
    study: Annotated[StudyConfig, FLAT] = StudyConfig()
    # time the candidates and print the plan; nothing is written
    dry_run: bool = False
    device: Device = "auto"


def keywords(given: Any) -> dict[str, Any]:
    values = dict(vars(given))
    return {"config": values.pop("study")} | values


COMMAND = Command(
    "which start and recipe is best on these images: ranking, model",
    lambda _: Study,
    "selfpatch.commands.study.study:study",
    keywords,
)
