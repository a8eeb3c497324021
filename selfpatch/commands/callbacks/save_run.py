"""Saving of a run beside its training: what is saved is copied at its step, and written by a thread."""

import torch

from selfpatch.backbones.backbone import Backbone
from selfpatch.config import PretrainConfig
from selfpatch.export.timm_file import export_timm
from selfpatch.output.background_writer import BackgroundWriter
from selfpatch.pretraining.parallel import OneProcess
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.pretraining.train_state import TrainState


class RunSaver:
    """Writes the checkpoints of a run, and the teacher's backbone beside each. All ranks call it, rank 0 writes.

    An error of writing, such as a full disk, is raised by the next call of any method, or of the writer.
    """

    def __init__(self, config: PretrainConfig, run: RunFolder, state: TrainState, model: OneProcess):
        self._config, self._run, self._state, self._model = config, run, state, model
        self._saved_step: int | None = None  # of the last checkpoint that this process wrote
        self._load_line = ""
        self.writer = BackgroundWriter()

    def save(self, metrics: dict[str, float], *, num_best: int) -> None:
        """Checkpoint and backbone as they are now; nothing if this step was saved already, for its score.

        Args:
            metrics: of this step, for the checkpoint's state.
            num_best: number of checkpoints that are kept for their metrics, besides the newest.
        """
        if self._state.step == self._saved_step:
            return
        self.writer.wait()  # no second copy of the state is made before the first is written
        write_checkpoint = self._run.snapshot(self._state, self._config, metrics, num_best=num_best)
        backbone, step = self._model.export_backbone(), self._state.step
        self._saved_step = step
        if write_checkpoint is None or backbone is None:
            return

        def write() -> None:
            write_checkpoint()
            self._write(backbone, step)

        self.writer.submit(write)

    def finish(self) -> str:
        """Wait for what is under way; returns the line of Python that loads the backbone of now, on rank 0."""
        self.writer.wait()
        if self._state.step != self._saved_step and (backbone := self._model.export_backbone()) is not None:
            self._write(backbone, self._state.step)
        return self._load_line

    def _write(self, backbone: Backbone, step: int) -> None:
        metadata = {"recipe": self._config.recipe, "step": str(step)}
        with torch.no_grad():
            self._load_line = export_timm(backbone, self._run.backbone_file, metadata=metadata)
