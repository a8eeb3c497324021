"""Where a run starts: its own newest checkpoint, one of another run, weights, or nothing."""

from pathlib import Path

from selfpatch.commands.run_setup.starting_weights import start_from
from selfpatch.config import PretrainConfig
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.terminal import say
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.pretraining.train_state import TrainState, require_pretraining_checkpoint


def restore(
    run: RunFolder,
    config: PretrainConfig,
    state: TrainState,
    *,
    resume: Path | str | None,
    init_from: Path | str | None,
) -> None:
    """Load what the run goes on from, in the order that run_folder.py states."""
    found, skipped_checkpoints = run.load_newest(state, config)
    if found is None and skipped_checkpoints and resume is None:
        raise UserError(
            f"no checkpoint of {run.path} can be read: {skipped_checkpoints[0]}. Give another one to go on from "
            "(--resume), or a new folder to start anew"
        )
    for reason in skipped_checkpoints:
        say(f"warning: {reason}; an older checkpoint is used")
    if found is None and resume is not None:
        found = checkpoint.load(Path(resume))
        require_pretraining_checkpoint(found)
        run.require_same_method(found.state["method"], config, Path(resume))
        state.load(found)
    if found is not None:
        say(f"going on from {found.path} at step {state.step}")
    elif init_from is not None:
        say(f"starting from {init_from}: {start_from(state.student_teacher, str(init_from))}")
