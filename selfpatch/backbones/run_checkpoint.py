"""RUN@best, RUN@last and RUN@step-400: the teacher's backbone in a checkpoint of a run."""

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from selfpatch.backbones.build import build_backbone, norm_eps
from selfpatch.backbones.checkpoints.exported import Description
from selfpatch.backbones.checkpoints.sidecar import Normalization
from selfpatch.backbones.without_values import without_values
from selfpatch.config import pixel_format, rows_columns
from selfpatch.config.io import read_yaml
from selfpatch.errors import UserError
from selfpatch.output import checkpoint

BACKBONE, AGGREGATOR_NORM = "teacher.backbone.model.", "teacher.aggregator.norm."


class RunCheckpoint(NamedTuple):
    """A checkpoint of the run in the folder `run`."""

    run: Path
    path: Path


def find_run_checkpoint(model: str | Path) -> RunCheckpoint | None:
    """The checkpoint that RUN@WHICH names; None: `model` is something else, such as a path with an @ of its own.

    Raises:
        UserError: the run has no such checkpoint; those that it has are listed.
    """
    name, _, which = str(model).rpartition("@")
    run = Path(name)
    if not name or Path(model).exists() or not ((run / "config.yaml").is_file() or (run / "checkpoints").is_dir()):
        return None
    folder = run / "checkpoints"
    paths = {checkpoint.step_of(path): path for path in checkpoint.checkpoints_in(folder)}
    if not paths:
        raise UserError(f"{model}: the run {run} has no checkpoints (in {folder}); give {run} for its last backbone")
    steps = ", ".join(f"{run}@step-{step}" for step in paths)
    if which == "last":
        return RunCheckpoint(run, paths[max(paths)])
    if which == "best":
        metric = read_yaml(run / "config.yaml").run.keep_best_by
        if best := checkpoint.ranked(folder, metric):
            return RunCheckpoint(run, best[0][0])
        raise UserError(
            f"{model}: no checkpoint of this run has a {metric}, by which the best is chosen; a run that is scored "
            f"(--evaluate.data DATA) has. There are: {run}@last, {steps}"
        )
    step = re.fullmatch(r"step-(\d{1,18})", which)
    if step is None or int(step[1]) not in paths:
        raise UserError(f"{model}: this run has no checkpoint {which!r}. There are: {run}@last, {run}@best, {steps}")
    return RunCheckpoint(run, paths[int(step[1])])


def run_folder(model: str | Path) -> Path:
    """The folder of the run that MODEL names, with or without @; `model` itself if it is something else."""
    found = find_run_checkpoint(model)
    return Path(model) if found is None else found.run


def read_run_checkpoint(found: RunCheckpoint) -> tuple[Description, dict[str, Tensor]]:
    """What the exported backbone of this step would hold: its description, and tensors under timm's names.

    Raises:
        UserError: the checkpoint is damaged, or is none of pretraining.
    """
    config = read_yaml(found.run / "config.yaml")
    read = checkpoint.load(found.path, names=["model"])
    all_tensors = read.tensors.get("model", {})
    tensors = {name.removeprefix(BACKBONE): tensor for name, tensor in all_tensors.items() if name.startswith(BACKBONE)}
    if not tensors:
        raise UserError(f"{found.path} holds no backbone of a pretraining run; give the folder of such a run")
    mean, std = config.crops.normalization
    with without_values():
        built = build_backbone(
            config.backbone, rows_columns(config.crops.global_size), mean=mean, std=std, pixels=pixel_format(config)
        )
    name, arguments = built.architecture
    # A backbone without a norm of its own has the aggregator's, as in training.
    has_norm = not isinstance(built.final_norm, nn.Identity)
    borrowed = {
        name.replace(AGGREGATOR_NORM, "norm."): tensor
        for name, tensor in all_tensors.items()
        if name.startswith(AGGREGATOR_NORM) and not has_norm
    }
    if not has_norm and not borrowed:
        arguments = arguments | {"final_norm": False}
    described = Description(
        name, arguments, Normalization(mean, std), bool(borrowed), norm_eps(built.model), pixel_format(config)
    )
    return described, tensors | borrowed
