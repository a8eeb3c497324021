"""The best checkpoints of a run: the metric that ranks them, and when one is written for its score."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfpatch.config import PretrainConfig
from selfpatch.errors import UserError, unknown_name
from selfpatch.output import checkpoint
from selfpatch.output.checkpoint import is_loss

# Logged by the monitor where there are labeled images.
SCORES = ("in_context/mIoU", "in_context/aAcc", "in_context/mAcc")


class BestCheckpoints:
    """The checkpoints of a run that are kept for the metric `run.keep-best-by`.

    Raises:
        UserError: no run logs that metric, or this one does not, and best checkpoints are asked for.
    """

    def __init__(self, config: PretrainConfig, folder: Path):
        self._folder, self._log_every = folder, config.run.log_every
        self.metric = config.run.keep_best_by
        losses = ("loss", *(f"{name}/loss" for name in config.objectives.given()))
        if self.metric not in (*SCORES, *losses):
            raise unknown_name("run.keep-best-by", self.metric, (*SCORES, *losses))
        is_logged = self.metric in losses or config.evaluate.data is not None
        if config.run.keep_best and not is_logged:
            raise UserError(
                f"run.keep-best is {config.run.keep_best}, and this run logs no {self.metric}: scores need labeled "
                "images (evaluate.data DATA); give them, or rank by a loss (run.keep-best-by loss)"
            )
        self.count = int(is_logged) if config.run.keep_best is None else config.run.keep_best

    def metrics(self, latest: Mapping[str, tuple[int, Any]], step: int) -> dict[str, float]:
        """Of the log's latest values, those that describe the weights after `step`: for the state of a checkpoint.

        A score counts at its very step; a loss is a mean over the steps of a line of the log, so the last line counts.
        """
        return {
            name: float(value)
            for name, (logged, value) in latest.items()
            if (name in SCORES and logged == step) or (is_loss(name) and logged > step - self._log_every)
        }

    def has_place_for(self, metrics: Mapping[str, float]) -> bool:
        """True if a checkpoint with these metrics would be one of the best."""
        value = metrics.get(self.metric)
        if not self.count or value is None:
            return False
        kept = checkpoint.ranked(self._folder, self.metric)[: self.count]
        if len(kept) < self.count:
            return True
        worst = kept[-1][1]
        return value < worst if is_loss(self.metric) else value > worst

    def summary(self, run: Path) -> Iterator[str]:
        """The sentence for the end of a run, if it keeps a best checkpoint."""
        for path, value in checkpoint.ranked(self._folder, self.metric)[: min(self.count, 1)]:
            shown = f"{value:.4f}" if is_loss(self.metric) else f"{100 * value:.1f} %"
            yield f"best checkpoint by {self.metric}: {shown} at step {checkpoint.step_of(path)}; use {run}@best"
