"""All that reads files of others, by kind: each maker returns a function that reads one file or refuses it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.config import RGB_8, ImagesConfig
from selfpatch.config.io import read_yaml
from selfpatch.data.derive_pixels import derive_pixels
from selfpatch.data.inspection.inspect import inspect_image
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage, read_image, read_size
from selfpatch.data.reading.labels import read_stored_numbers
from selfpatch.errors import UserError
from selfpatch.evaluation.comparison import read_result
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import read_metrics

REFUSALS = (UserError, UnreadableImage)
DEEP = RGB_8._replace(dtype="float32", num_channels=1, value_range=(0.0, 65535.0))


def images() -> Callable[[Path], object]:
    """As pixels of 8 and of 16 bits, as a size, as a mask, and as `check` reads them."""

    def read(path: Path) -> None:
        found = inspect_image(path)
        refusals = []
        for reader in (read_image, read_size, read_stored_numbers, lambda file: read_image(file, DEEP)):
            try:
                reader(path)
            except UnreadableImage as error:
                refusals.append(str(error))
        if found.problem or refusals:
            raise UnreadableImage("; ".join([found.problem, *refusals]))

    return read


def weights() -> Callable[[Path], object]:
    """A file, or a folder with a file and its config.json."""
    from selfpatch.backbones.pretrained import load_backbone, load_training_state

    def read(path: Path) -> None:
        load_backbone(path)
        load_training_state(path)

    return read


def trained_state() -> Any:
    """After one step, so that the optimizer has a state."""
    from selfpatch.pretraining.train_state import TrainState
    from selfpatch.pretraining.train_step import build_optimizer
    from tests.small_models import tiny_config, tiny_student_teacher

    student_teacher = tiny_student_teacher(tiny_config())
    optimizer = build_optimizer(student_teacher)
    sum(parameter.sum() for parameter in student_teacher.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    return TrainState(student_teacher, optimizer)


def checkpoints() -> Callable[[Path], object]:
    """The folder of checkpoints of a run that goes on, and what chooses among them."""
    state = trained_state()

    def read(path: Path) -> None:
        checkpoint.ranked(path, "loss")
        checkpoint.latest_state(path)
        found, skipped = checkpoint.load_latest(path, state.load)
        if found is None:
            raise UserError("; ".join(skipped))

    return read


def manifests() -> Callable[[Path], object]:
    """Its list, and the pixels of what it lists."""

    def read(path: Path) -> None:
        source = open_images(path)
        derive_pixels(source, None, ImagesConfig())

    return read


def results() -> Callable[[Path], object]:
    def read(path: Path) -> None:
        read_metrics(path)
        read_result(path)

    return read


READERS = {
    "images": images,
    "weights": weights,
    "checkpoints": checkpoints,
    "settings": lambda: read_yaml,
    "manifests": manifests,
    "results": results,
}
