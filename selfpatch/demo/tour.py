"""`selfpatch demo`: the whole way in a few CPU minutes, on made-up scenes."""

from pathlib import Path

from selfpatch.commands.pretrain import PretrainResult, pretrain
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.terminal import TextTable, say, show_table
from selfpatch.recipes.demo import demo_runs

NUM_UNLABELED, NUM_TRAIN, NUM_VAL = 1000, 150, 50
SCENE_SIZE = 128


def demo(out: Path | str = "selfpatch-demo", *, seed: int = 0) -> PretrainResult:
    """Make up scenes, train on them without and with the patch objective, score both and random weights, draw pictures.

    Goes on if called again.

    Returns:
        of the run with the patch objective, or of the one that was stopped.

    Raises:
        UserError: `out` holds something else.
    """
    out = Path(out)
    scenes = out / "scenes"
    require_writable(out)
    if not (scenes / "ade20k" / "classes.txt").exists():
        if out.exists() and any(out.iterdir()) and not scenes.exists():
            raise UserError(f"{out} is not empty; give a new or empty folder for the demo")
        say(f"1. {NUM_UNLABELED} unlabeled scenes, and {NUM_TRAIN} + {NUM_VAL} with masks to score with: {scenes}")
        write_scenes(
            scenes, num_unlabeled=NUM_UNLABELED, num_train=NUM_TRAIN, num_val=NUM_VAL, size=SCENE_SIZE, seed=seed
        )
    settings = {"seed": seed, "evaluate.data": scenes / "ade20k"}
    results: list[tuple[str, PretrainResult]] = []
    for folder, (name, config) in demo_runs().items():
        say(f"2. Train a tiny vision transformer on the unlabeled scenes, {name}: {out / folder}")
        result = pretrain(scenes / "images", out / folder, config=config, settings=settings)
        results.append((name, result))
        if result.stopped_by is not None:
            return result
    show(results, scenes)
    return results[-1][1]


def show(results: list[tuple[str, PretrainResult]], scenes: Path) -> None:
    """The table of scores, where to look (at the last run), what to do next."""
    _, result = results[-1]
    say("3. What their patches know: in-context segmentation of other scenes, nothing trained on labels")
    table = TextTable()
    table.add_column("backbone")
    table.add_column("mIoU %", justify="right")
    table.add_row("random weights", f"{100 * result.scores[0]:.1f}")
    for name, trained in results:
        for step, score in sorted(trained.scores.items()):
            if step > 0:
                at_end = step == trained.steps_done
                table.add_row(f"{name}, {step} steps", f"{100 * score:.1f}", style="bold" if at_end else None)
    show_table(table)
    say(
        f"4. Look: {result.out / 'report.html'}  (curves, what its patches see; the pictures alone: "
        f"{result.out / 'pictures'})\n"
        f"5. Score it otherwise, then train on your own images:\n"
        f"     selfpatch evaluate {result.out} --task linear-segmentation --preset quick "
        f"--data {scenes / 'ade20k'} --out SCORES\n"
        f"     selfpatch pretrain IMAGES RUN --recipe dino-selfpatch-small"
    )
