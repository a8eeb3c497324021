"""Monitoring of a run while it trains: scores of the teacher's patches, pictures, curves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.position_removal import position_r2
from selfpatch.commands.callbacks.best_checkpoints import SCORES, BestCheckpoints
from selfpatch.commands.callbacks.position_leak import position_moments
from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import read_evenly_spaced
from selfpatch.data.same_content import same_content
from selfpatch.distributed import alone
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.segmentation.in_context_segmentation import InContextEvaluator
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.progress import TrainingProgress
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.training.loop import Callback, PeriodicCallback
from selfpatch.visualization.curves import draw_curves
from selfpatch.visualization.pictures import visualize
from selfpatch.visualization.positives import positives_config

NUM_PICTURED_IMAGES = 6
# What a score may lie below that before training without a warning: a tenth of a point.
NO_FALL = 0.001
# For the R2 of position, half to fit and half to score.
NUM_POSITION_IMAGES = 100


class TrainingMonitor:
    """The callbacks of a run, with the data they need. Settings and data are checked when it is made."""

    def __init__(
        self,
        config: PretrainConfig,
        images: ImageFiles,
        run: RunFolder,
        *,
        num_steps: int,
        patch_size: tuple[int, int],
        device: torch.device,
    ):
        self.progress: TrainingProgress | None = None
        self._config, self._images, self._run, self._device = config, images, run, device
        settings = config.evaluate
        self.best = BestCheckpoints(config, run.checkpoints)
        self.every = settings.every_steps or default_interval(num_steps)
        self._image_size = settings.image_size or 2 * min(rows_columns(config.crops.global_size))
        self._positives = positives_config(config.objectives)
        smallest = max(patch_size) * self._positives.min_grid_side
        if self._image_size < smallest:
            raise UserError(
                f"evaluate.image-size is {self._image_size}; scores and pictures need at least {smallest} px, the "
                "window in which positives are sought"
            )
        self._evaluator = None
        if settings.data is not None:
            self._data = read_segmentation(settings.data, max_images=settings.max_images, pixels=images.pixels)
            if not settings.allow_overlap:
                refuse_overlap(images, [item.image for item in self._data.val], settings.data)
            protocol = InContextSegmentation(
                image_size=self._image_size,
                resize="keep_aspect",
                memory_size=settings.memory_size,
                num_neighbors=settings.num_neighbors,
                max_images=settings.max_images,
            )
            self._evaluator = InContextEvaluator(self._data, protocol, patch_size=patch_size)

    def callbacks(self, export_backbone: Callable[[], Backbone | None]) -> Iterator[PeriodicCallback]:
        """Callbacks for every rank, of which rank 0 has the backbone and does the work."""

        def on_rank_0(callback: Callable[[Backbone, int], dict[str, float]]) -> Callback:
            def call(step: int) -> dict[str, float]:
                backbone = export_backbone()
                if backbone is None:
                    return {}
                with alone():
                    return self._forgiven(callback, backbone, step)

            return call

        if self._evaluator is not None:
            yield PeriodicCallback(self.every, on_rank_0(self.score), at_start=True)
        within_budget = self._config.evaluate.every_steps is None
        yield PeriodicCallback(self.every, on_rank_0(self.picture), within_budget=within_budget)

    def _forgiven(
        self, callback: Callable[[Backbone, int], dict[str, float]], backbone: Backbone, step: int
    ) -> dict[str, float]:
        """Call it and return its metrics; warn of an error instead: no score and no picture is worth a run.

        Weights that are not finite, a full disk, images or labels that are gone: training goes on without.
        """
        try:
            return callback(backbone, step)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            self._say(
                f"warning: no {callback.__name__} of step {step} ({type(error).__name__}: {reason}); training goes on"
            )
            return {}

    def score(self, backbone: Backbone, step: int) -> dict[str, float]:
        """mIoU of in-context segmentation, to the log, the terminal and a picture of predictions; R2 of position."""
        assert self._evaluator is not None
        scores = self._evaluator(backbone, device=self._device)
        fitted, held_out = position_moments(backbone, read_evenly_spaced(self._images, NUM_POSITION_IMAGES))
        self._say(
            f"step {step}: in-context mIoU {100 * scores.metrics['mIoU']:.1f}"
            + (" (before training)" if step == 0 else "")
        )
        if warning := self._below_start(step, scores.metrics["mIoU"]):
            self._say(warning)
        write_prediction_sheets(scores.predictions, self._data, self._run.pictures)
        position = {"patches/position_r2": position_r2(fitted, held_out)} if held_out.count else {}
        return {name: scores.metrics[name.removeprefix("in_context/")] for name in SCORES} | position

    def _below_start(self, step: int, score: float) -> str | None:
        """The sentence for a score that has fallen below that before training; None: it has not, or had before."""
        earlier = {done: value for done, value in self.scores().items() if done < step}
        start = earlier.get(0)
        if start is None or score >= start - NO_FALL or earlier[max(earlier)] < start - NO_FALL:
            return None
        text = f"warning: in-context mIoU {100 * score:.2f} is below the {100 * start:.2f} before training"
        if self.best.count and self.best.metric == "in_context/mIoU":
            best = max(earlier, key=lambda done: earlier[done])
            text += f"; the best so far, {100 * earlier[best]:.2f} at step {best}, is kept as {self._run.path}@best"
        return text

    def picture(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Draw the pictures of the teacher's patches anew, and the curves so far."""
        visualize(
            backbone,
            list(read_evenly_spaced(self._images, NUM_PICTURED_IMAGES)),
            self._run.pictures,
            image_size=self._image_size,
            positives=self._positives,
            for_report=True,
        )
        if step > 0:
            draw_curves(read_metrics(self._run.metrics_file), self._run.pictures / "curves.png")
        return {}

    def scores(self) -> dict[int, float]:
        lines = read_metrics(self._run.metrics_file)
        return {line["step"]: line["in_context/mIoU"] for line in lines if "in_context/mIoU" in line}

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.say(text)


def default_interval(num_steps: int) -> int:
    """Steps between scores and between pictures: ten times in a run, but not more often than every ten steps.

    A score of 200 images costs as much as a step of them: in a run of 16 steps ten scores took most of the time.
    """
    return max(num_steps // 10, min(num_steps, 10))


def refuse_overlap(images: ImageFiles, val: list[Path], data: Path) -> None:
    """
    Raises:
        UserError: the content of a validation image is among the images to train on.
    """
    if overlap := same_content(val, images):
        own, index = next(iter(overlap.items()))
        raise UserError(
            f"{len(overlap)} of {len(val)} validation images in {data} are among the images to train on ({own.name} is "
            f"{images.path(index)}, say), so scores would be of images that were seen: leave these out "
            "(--images.exclude PATTERN), take other labeled images, or allow it (--evaluate.allow-overlap)"
        )
