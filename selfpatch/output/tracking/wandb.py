"""Weights & Biases: online where its user is logged in, or offline (WANDB_MODE=offline), to be sent by `wandb sync`."""

import contextlib
import json
import os
import secrets
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.tracking.tracker import TrackedRun

NOT_ONLINE = ("offline", "dryrun", "disabled")


def require() -> None:
    """
    Raises:
        UserError: W&B is not installed, or it would send and nobody is logged in.
    """
    leave_out = "or leave it out. The same numbers are in metrics.jsonl (docs/trackers.md)"
    if find_spec("wandb") is None:
        raise UserError(
            "track is wandb, and Weights & Biases is not installed; install it (pip install 'selfpatch[wandb]') "
            + leave_out
        )
    wandb = _import()
    if _mode(wandb) in NOT_ONLINE:
        return
    try:
        logged_in = wandb.login(prompt=False, verify=False)
        reason = "nobody is logged in to Weights & Biases here"
    except Exception as error:  # a key that cannot be one, or two of them
        logged_in, reason = False, " ".join(str(error).split())
    if not logged_in:
        raise UserError(
            f"track is wandb, and {reason}; log in (wandb login, or WANDB_API_KEY), keep everything on this machine "
            f"(WANDB_MODE=offline; wandb sync sends it later) {leave_out}"
        )


def _import() -> Any:
    # Reports of its own errors would go to its makers, which nobody asked for.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _mode(wandb: Any) -> str:
    return os.environ.get("WANDB_MODE") or wandb.setup().settings.mode


class WandB:
    """One run of W&B, whose id stands in the run's folder.

    Only numbers, pictures and settings go into it: no output of the terminal, no code, no load of the machine.
    """

    def __init__(self, run: TrackedRun):
        wandb = _import()
        run.folder.mkdir(parents=True, exist_ok=True)
        self._image = wandb.Image
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._last: int | None = None  # the last step that this attempt has sent
        self._attempts = Attempts(run.folder)
        self._is_online = _mode(wandb) not in NOT_ONLINE
        self.logged_step = -1 if self._is_online else self._attempts.take_back(run.first_step)
        self._run = wandb.init(
            id=self._attempts.run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "selfpatch"),
            name=os.environ.get("WANDB_NAME", run.name),
            config=run.settings,
            dir=str(run.folder),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        if self._is_online:  # what W&B has it keeps: a step is not sent a second time
            self.logged_step, self.hint = self._run.step - 1, str(self._run.url)
        else:
            self.hint = f"nothing is sent; wandb sync {run.folder / 'wandb'}/offline-run-* does"
            self._attempts.begin(Path(self._run.dir).parent.name)

    def log(self, step: int, values: dict[str, Any]) -> None:
        if self._is_online and step <= self.logged_step:
            return
        if self._pending is not None and self._pending[0] != step:
            self._send()
        self._pending = (step, (self._pending[1] if self._pending else {}) | values)

    def log_pictures(self, step: int, pictures: dict[str, Path]) -> None:
        self.log(step, {name: self._image(str(file)) for name, file in pictures.items()})

    def _send(self) -> None:
        """A step goes out as one row: W&B takes no second one of the same step."""
        if self._pending is not None:
            (step, values), self._pending = self._pending, None
            self._run.log(values, step=step, commit=True)
            self._last = step

    def close(self) -> None:
        self._send()
        self._run.finish()
        if not self._is_online:
            self._attempts.end(self.logged_step if self._last is None else self._last)


class Attempts:
    """The id of a run, and of each attempt that wrote offline its folder and, once it ended, its last step.

    W&B cannot take steps back, and writes only what has filled a block or was closed. So the folder of an attempt that
    was killed, or went further than the checkpoint from which the run goes on, is removed, and its lines are written
    again from metrics.jsonl. One that was sent already (`wandb sync`) stays.
    """

    def __init__(self, folder: Path):
        self._folder, self._file = folder, folder / "run.json"
        state: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self._file.read_text(encoding="utf-8"))
        self.run_id: str = state.get("id") or secrets.token_hex(4)
        self._last: dict[str, int | None] = state.get("attempts") or {}
        self._write()

    def take_back(self, first_step: int) -> int:
        """Remove the attempts that hold more than `first_step` steps; returns the last step of those that stay."""
        for name, last in list(self._last.items()):
            attempt = self._folder / "wandb" / Path(name).name
            if any(attempt.glob("*.wandb.synced")):
                self._last[name] = first_step if last is None else last
            elif last is None or last > first_step or first_step == 0:
                shutil.rmtree(attempt, ignore_errors=True)
                del self._last[name]
        self._write()
        return max((last for last in self._last.values() if last is not None), default=-1)

    def begin(self, name: str) -> None:
        self._last[name] = None
        self._write()

    def end(self, last_step: int) -> None:
        self._last[list(self._last)[-1]] = last_step
        self._write()

    def _write(self) -> None:
        with atomic_write(self._file) as file:
            file.write_text(json.dumps({"id": self.run_id, "attempts": self._last}) + "\n", encoding="utf-8")
