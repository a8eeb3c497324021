"""Images that turn out unreadable while a run trains: how many are too many."""

from selfpatch.config import PretrainConfig
from selfpatch.distributed import reported_once
from selfpatch.errors import RunFailedError
from selfpatch.pretraining.run_folder import RunFolder


def refuse_bad_images(count: int, num_images: int, config: PretrainConfig, run: RunFolder) -> int:
    """Return `count`.

    Raises:
        RunFailedError: more than run.max-bad-fraction of the images cannot be read.
    """
    if count > config.run.max_bad_fraction * num_images:
        error = RunFailedError(
            f"{count} of {num_images} images cannot be read, more than run.max-bad-fraction "
            f"{config.run.max_bad_fraction:.0%}; they are listed in {run.bad_images_file}. Fix or remove them"
        )
        raise reported_once(error)
    return count
