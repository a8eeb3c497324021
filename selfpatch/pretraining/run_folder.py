"""The folder of a run: its lock, its settings and its files.

Where a run starts: (1) OUT's own newest valid checkpoint, (2) `--resume PATH`, (3) `--init-from WEIGHTS`, (4) scratch.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfpatch.config import RESULT_AFFECTING, PretrainConfig
from selfpatch.config.io import config_of, differences, read_yaml, to_dict, write_yaml
from selfpatch.data.source import ImageSource
from selfpatch.distributed import is_main
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.atomic_files import atomic_write, open_to_append, require_writable
from selfpatch.output.checkpoint import Checkpoint
from selfpatch.output.folder_lock import LOCK, FolderLock
from selfpatch.output.metric_logger import MetricLogger, NoLogger
from selfpatch.output.terminal import say
from selfpatch.pretraining.train_state import TrainState


class RunFolder:
    """OUT. `check` refuses a folder that this run must not touch, before anything is written; `open` takes it."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.bad_images_file = path / "bad_images.txt"
        self.images_file = path / "images.json"
        self.backbone_file = path / "backbone.safetensors"
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self._lock = FolderLock(path)
        self._bad_images: dict[str, str] = {}
        self._identity: dict[str, Any] = {}  # of the images, as they were when this process began

    def check(self, config: PretrainConfig, images: ImageSource, *, lock: bool = True) -> None:
        """Refuse what `open` could not take.

        Args:
            lock: keep others from writing to it from here on; without, nothing is written.

        Raises:
            UserError: OUT cannot be written, holds something else, a run on other images or with other settings (the
                differences are listed), or another process is running in it.
        """
        require_writable(self.path)
        self._identity = identity_of(images)
        if (
            self.path.exists()
            and not self.config_file.exists()
            and any(not _of_a_start(p) for p in self.path.iterdir())
        ):
            raise UserError(
                f"{self.path} is not empty and holds no run of selfpatch (no config.yaml); give a new or empty folder"
            )
        if self.config_file.exists():
            # Images first: settings that are derived from their number differ as a consequence.
            self._require_same_images(checkpoint.latest_state(self.checkpoints) or self.read_images(), config)
            self.require_same_method(result_affecting(to_dict(read_yaml(self.config_file))), config, self.path)
            if lock:
                self._lock.take()  # from here on nobody else writes what this run is about to read

    def open(self, config: PretrainConfig, images: ImageSource, *, header: str) -> None:
        """Take the folder for this process, and write config.yaml, and which images it is about.

        Raises:
            UserError: another process is running in it (the message names host and pid).
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        for leftover in filter(_of_a_start, self.path.iterdir()):
            if leftover.name != LOCK:
                leftover.unlink(missing_ok=True)
        with atomic_write(self.config_file) as file:
            write_yaml(config, file, header=header)
        with atomic_write(self.images_file) as file:
            file.write_text(json.dumps(self._identity) + "\n", encoding="utf-8")
        if self.bad_images_file.exists():
            lines = self.bad_images_file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            self._bad_images = dict(line.split("\t", 1) for line in lines if "\t" in line)

    def read_images(self) -> dict[str, Any]:
        """The images of a run that has no checkpoint yet; empty if that is not known."""
        try:
            values = json.loads(self.images_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def close(self) -> None:
        self._lock.close()

    def load_newest(self, state: TrainState, config: PretrainConfig) -> tuple[Checkpoint | None, list[str]]:
        """Load OUT's own newest valid checkpoint into `state`; returns it, and why newer ones were skipped.

        Raises:
            UserError: it was made with other images, or by a newer version.
        """
        found, skipped_checkpoints = checkpoint.load_latest(self.checkpoints, state.load)
        if found is not None:
            self._require_same_images(found.state, config)
        return found, skipped_checkpoints

    def _require_same_images(self, state: dict[str, Any], config: PretrainConfig) -> None:
        """By names and number, and by what is in some of them; earlier checkpoints know less."""
        if config.run.allow_other_images:
            return
        remedy = (
            "put them back to go on, give a new folder for a new run, or go on with these (--run.allow-other-images)"
        )
        if isinstance(state.get("images"), str) and state["images"] != self._identity["images"]:
            raise UserError(
                f"the images are not those that the run in {self.path} was made with ({state.get('num_images')} then, "
                f"{self._identity['num_images']} now, or other names); {remedy}"
            )
        if isinstance(state.get("contents"), str) and state["contents"] != self._identity["contents"]:
            raise UserError(
                f"the images have the names of those that the run in {self.path} was made with, and other contents; "
                f"{remedy}"
            )

    def snapshot(
        self,
        state: TrainState,
        config: PretrainConfig,
        metrics: dict[str, float],
        *,
        num_best: int,
    ) -> Callable[[], None] | None:
        """Copy what a checkpoint holds; returns what writes it, now or later, from any thread, on rank 0.

        It holds the train state, what a run that goes on has to agree in, and the metrics of its step.

        Args:
            num_best: number of checkpoints that are kept for their metrics, besides the newest.
        """
        self._lock.keep()
        copies = {
            file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in group.items()}
            for file, group in state.tensors().items()
        }
        agreed = {**self._identity, "method": result_affecting(to_dict(config))}
        step, values = state.step, state.state() | agreed | {"metrics": metrics}

        def write() -> None:
            checkpoint.save(
                self.checkpoints,
                step,
                copies,
                values,
                keep=config.run.max_to_keep,
                keep_best=num_best,
                by=config.run.keep_best_by,
            )

        return write

    def record_bad_images(self, bad_images: list[tuple[str, str]]) -> int:
        """Add what is new to bad_images.txt; returns how many images have turned out unreadable so far.

        A full disk costs the list, not the run.
        """
        new = {name: " ".join(reason.split()) for name, reason in bad_images if name not in self._bad_images}
        if new:
            self._bad_images |= new
            try:
                with open_to_append(self.bad_images_file, errors="surrogateescape") as file:
                    file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
            except OSError as error:
                say(f"warning: {self.bad_images_file} cannot be written ({error.strerror}); it lacks {', '.join(new)}")
        return len(self._bad_images)

    def metric_logger(self, *, first_step: int) -> MetricLogger:
        return MetricLogger(self.metrics_file, first_step=first_step)

    def require_same_method(self, method: dict[str, Any], config: PretrainConfig, where: Path) -> None:
        """Settings that change results must be those that `where` was made with."""
        method = result_affecting(to_dict(config_of(method)))  # in the words of this version
        if lines := differences(method, result_affecting(to_dict(config))):
            shown = "\n  ".join(lines[:20])
            raise UserError(
                f"{where} holds a run with other settings (then -> now):\n  {shown}\nGive a new folder for this "
                "run, or the settings of then to go on"
            )


class OtherRanksFolder(RunFolder):
    """OUT as all ranks but 0 have it, which neither read nor write it."""

    def check(self, config: PretrainConfig, images: ImageSource, *, lock: bool = True) -> None:
        pass

    def open(self, config: PretrainConfig, images: ImageSource, *, header: str) -> None:
        pass

    def load_newest(self, state: TrainState, config: PretrainConfig) -> tuple[Checkpoint | None, list[str]]:
        return None, []

    def snapshot(
        self,
        state: TrainState,
        config: PretrainConfig,
        metrics: dict[str, float],
        *,
        num_best: int,
    ) -> None:
        state.tensors()  # shards go to rank 0

    def record_bad_images(self, bad_images: list[tuple[str, str]]) -> int:
        self._bad_images |= dict(bad_images)
        return len(self._bad_images)

    def metric_logger(self, *, first_step: int) -> MetricLogger:
        return NoLogger(self.metrics_file)


def run_folder(path: Path) -> RunFolder:
    """OUT for this rank. All that a run writes goes through it, by rank 0."""
    return RunFolder(path) if is_main() else OtherRanksFolder(path)


def identity_of(images: ImageSource) -> dict[str, Any]:
    return {
        "num_images": len(images),
        "images": images.fingerprint(),
        "contents": images.content_fingerprint(),
    }


def _of_a_start(path: Path) -> bool:
    """True for what a run leaves that was killed, or had no room, before it wrote its settings."""
    return path.name == LOCK or path.name.startswith(".config.yaml.")


def result_affecting(values: dict[str, Any]) -> dict[str, Any]:
    """Of all settings, as JSON and YAML hold them, those that change results."""
    return {name: values[name] for name in RESULT_AFFECTING}
