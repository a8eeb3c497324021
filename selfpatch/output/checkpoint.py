"""Checkpoints of a run: written whole or not at all, with checksums, the last few and the best kept.

    OUT/checkpoints/step-00012000/   model.safetensors  optimizer.safetensors  state.json  manifest.json (their sha256)

A checkpoint is written beside its place and renamed, files and folder synced first: after a crash or a power loss there
is the old one or the new one, never half of one.

Which are the best follows from the checkpoints themselves: the state of each holds the metrics of its step.
"""

import errno
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfpatch.errors import UserError
from selfpatch.output.atomic_files import fsync
from selfpatch.output.transient_errors import retried

MANIFEST = "manifest.json"


class DamagedCheckpointError(UserError):
    """A checkpoint is not whole, or holds something else than what its writer put there: an older one may do."""


class Checkpoint(NamedTuple):
    path: Path
    tensors: dict[str, dict[str, Tensor]]  # file (without .safetensors) -> name -> tensor
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    *,
    keep: int,
    keep_best: int = 0,
    by: str = "",
) -> Path:
    """Write `folder/step-XXXXXXXX` and delete all but the newest `keep`, later steps first, and the best.

    Args:
        keep_best: number of checkpoints that are kept for their value of the metric `by` (see `ranked`).

    Raises:
        OSError: the disk is full (with the bytes needed) or not writable; what was there before is untouched.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{final.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, group in tensors.items():
            save_file(
                {key: value.detach().contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors"
            )
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            fsync(file)
        fsync(temporary)
        shutil.rmtree(final, ignore_errors=True)  # of an earlier run that went on from an older step
        temporary.rename(final)
        fsync(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            needed = sum(value.nbytes for group in tensors.values() for value in group.values())
            raise OSError(
                errno.ENOSPC,
                f"no room for a checkpoint of {needed / 1e6:.0f} MB in {folder}; make room and start again, "
                "the run goes on from the checkpoint before",
            ) from error
        if isinstance(error, SafetensorError):
            raise OSError(f"{final} cannot be written: {error}") from error
        raise
    _delete_old(folder, final.name, keep=keep, keep_best=keep_best, by=by)
    return final


def checkpoints_in(folder: Path) -> list[Path]:
    """Those that a run wrote, oldest first; a copy under another name, such as step-00000100.bak, is none."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def ranked(folder: Path, metric: str) -> list[tuple[Path, float]]:
    """The checkpoints that have a value of `metric` in their state's "metrics", best first; of equal ones the earlier.

    Losses are better when lower, everything else when higher. One whose state is damaged has no value.
    """
    values = {}
    for path in checkpoints_in(folder) if metric else []:
        try:
            metrics = load_state(path).get("metrics")
        except DamagedCheckpointError:
            continue
        value = metrics.get(metric) if isinstance(metrics, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            values[path] = value
    return sorted(values.items(), key=lambda item: item[1] if is_loss(metric) else -item[1])


def is_loss(metric: str) -> bool:
    """True for a metric that is better when lower: "loss", and the "NAME/loss" of every objective."""
    return metric.rpartition("/")[2] == "loss"


def step_of(path: Path) -> int:
    """The number of steps done, by the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def load(path: Path, *, names: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint after comparing every file with its checksum.

    Args:
        names: files of tensors to read (without .safetensors); None: all of them.

    Raises:
        DamagedCheckpointError: a file is missing, cannot be read, or is not what was written.
    """
    try:
        manifest = _read_manifest(path)
        files = [name for name in manifest if names is None or name == "state.json" or Path(name).stem in names]
        for name in files:
            _compare_checksum(path, name, manifest)
        tensors = {Path(name).stem: load_file(path / name) for name in files if name.endswith(".safetensors")}
        return Checkpoint(path, tensors, _read_json(path / "state.json"))
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error


def load_latest(
    folder: Path, accept: Callable[[Checkpoint], None] = lambda found: None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and why newer ones were skipped.

    Args:
        accept: raises DamagedCheckpointError for one that its writer cannot have written, so that it is skipped too.
    """
    skipped_checkpoints = []
    for path in reversed(checkpoints_in(folder)):
        try:
            found = load(path)
            accept(found)
        except DamagedCheckpointError as error:
            skipped_checkpoints.append(str(error))
        else:
            return found, skipped_checkpoints
    return None, skipped_checkpoints


def latest_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's state, or the next one's if that is damaged, without a look at tensors; else empty."""
    for path in reversed(checkpoints_in(folder)):
        try:
            return load_state(path)
        except DamagedCheckpointError:
            continue
    return {}


def load_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, without a look at its tensors.

    Raises:
        DamagedCheckpointError: it is missing, cannot be read, or is not what was written.
    """
    try:
        _compare_checksum(path, "state.json", _read_manifest(path))
        return _read_json(path / "state.json")
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error


def require(found: Checkpoint, *, state: Mapping[str, type], tensors: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks values of its state, has them of another type, or lacks files of tensors.

    Raises:
        DamagedCheckpointError: with the first of them.
    """
    for name, kind in state.items():
        value = found.state.get(name)
        if type(value) is not kind:
            raise DamagedCheckpointError(f"{found.path / 'state.json'} is damaged: its {name} is {value!r}")
    for name in tensors:
        if name not in found.tensors:
            raise DamagedCheckpointError(f"{found.path / MANIFEST} is damaged: it lists no {name}.safetensors")


def _delete_old(folder: Path, newest: str, *, keep: int, keep_best: int, by: str) -> None:
    # Later ones are of a time line that was given up, damaged most likely: they must not push out what is whole.
    steps = checkpoints_in(folder)
    later = [path for path in steps if path.name > newest]
    for old in later:
        shutil.rmtree(old, ignore_errors=True)
    best = [path for path, _ in ranked(folder, by)[:keep_best]]
    for old in steps[: len(steps) - len(later)][:-keep]:
        if old not in best:
            shutil.rmtree(old, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The checksum of every file of a checkpoint."""
    manifest_file = path / MANIFEST
    if not manifest_file.is_file():
        raise DamagedCheckpointError(
            f"{path} is not a whole checkpoint: it has no {MANIFEST}; give one such as RUN/checkpoints/step-00001000"
        )
    manifest = _read_json(manifest_file)
    # Names of files beside it: an entry "../other/model.safetensors" would load another checkpoint's weights.
    if "state.json" not in manifest or any(Path(name).name != name for name in manifest):
        raise DamagedCheckpointError(f"{manifest_file} is damaged: it lists {', '.join(manifest) or 'no files'}")
    return manifest


def _compare_checksum(path: Path, name: str, manifest: dict[str, Any]) -> None:
    file = path / name
    if not file.is_file() or _sha256(file) != manifest[name]:
        raise DamagedCheckpointError(f"{file} is missing or not what was written: its checksum differs")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise DamagedCheckpointError(f"{path} is damaged: it holds {type(values).__name__}, not names and values")
    return values


def _sha256(path: Path) -> str:
    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return retried(digest)  # a network file system that is away for a moment must not cost a checkpoint
