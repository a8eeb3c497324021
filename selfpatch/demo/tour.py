"""`selfpatch demo`: the whole way in a few CPU minutes, on made-up scenes."""

from pathlib import Path

from selfpatch.commands.pretrain import PretrainResult, pretrain
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.terminal import TextTable, say, show_table

NUM_UNLABELED, NUM_TRAIN, NUM_VAL = 1000, 150, 50
SCENE_SIZE = 128


def demo(out: Path | str = "selfpatch-demo", *, seed: int = 0) -> PretrainResult:
    """Make up scenes, train on them, score random weights against trained ones, draw pictures. Goes on if called again.

    Raises:
        UserError: `out` holds something else.
    """
    out = Path(out)
    scenes, run = out / "scenes", out / "run"
    require_writable(out)
    if not (scenes / "ade20k" / "classes.txt").exists():
        if out.exists() and any(out.iterdir()) and not scenes.exists():
            raise UserError(f"{out} is not empty; give a new or empty folder for the demo")
        say(f"1. {NUM_UNLABELED} unlabeled scenes, and {NUM_TRAIN} + {NUM_VAL} with masks to score with: {scenes}")
        write_scenes(
            scenes, num_unlabeled=NUM_UNLABELED, num_train=NUM_TRAIN, num_val=NUM_VAL, size=SCENE_SIZE, seed=seed
        )
    say(f"2. Train a tiny vision transformer on the unlabeled scenes: {run}")
    result = pretrain(
        scenes / "images", run, recipe="demo", settings={"seed": seed, "evaluate.data": scenes / "ade20k"}
    )
    if result.stopped_by is None:
        show(result, scenes)
    return result


def show(result: PretrainResult, scenes: Path) -> None:
    """The table of scores, where to look, what to do next."""
    say("3. What its patches know: in-context segmentation of other scenes, nothing trained on labels")
    table = TextTable()
    table.add_column("backbone")
    table.add_column("mIoU %", justify="right")
    for step, score in sorted(result.scores.items()):
        name = "random weights" if step == 0 else f"trained, {step} steps"
        table.add_row(name, f"{100 * score:.1f}", style="bold" if step == result.steps_done else None)
    show_table(table)
    say(
        f"4. Look: {result.out / 'pictures'}  (pca.png, similarity.png, positives.png, predictions_1.png, curves.png)\n"
        f"5. Score it otherwise, then train on your own images:\n"
        f"     selfpatch evaluate {result.out} --task linear-segmentation --preset quick "
        f"--data {scenes / 'ade20k'} --out SCORES\n"
        f"     selfpatch pretrain IMAGES RUN --recipe dino-selfpatch-small"
    )
