"""The command line: reads arguments, calls a command, turns a user's mistakes into one paragraph and exit code 2.

Nothing here imports torch before a command runs, so that help and mistakes answer at once.

Exit codes: 0 done; 1 the run failed; 2 the request cannot be met as it stands; 128 + N stopped by signal N, and saved.
"""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import AvoidSubcommands, Positional, arg

from selfpatch.config import PretrainConfig
from selfpatch.config.io import read_yaml
from selfpatch.errors import UserError
from selfpatch.evaluation.protocols import TASKS
from selfpatch.recipes import RECIPES, find_recipe

Flat = arg(name="")  # a group of settings whose flags carry no prefix
Images = Annotated[Positional[Path], arg(metavar="IMAGES")]
Model = Annotated[Positional[str], arg(metavar="MODEL")]
Out = Annotated[Positional[Path], arg(metavar="OUT")]
NumHeads = Annotated[
    int | None, arg(help="attention heads of an original checkpoint of unusual width; None: known from the width")
]
Device = Annotated[str, arg(help='"auto", or as torch names it: cpu, cuda, cuda:1, mps')]


@dataclass(frozen=True)
class Visualize:
    """Draw what the patches of a model see: joint PCA, similarity to one patch, SelfPatch's positives."""

    # a run folder, an exported file, an original checkpoint or timm:NAME
    model: Model
    # a folder of images
    images: Images
    # the folder to write pictures to
    out: Out
    # how many images, spread evenly over the folder
    count: int = 6
    # short side in pixels as the model gets them; None: twice what it was built for
    image_size: int | None = None
    # x and y in the first image, whose patch others are compared with; None: the middle of each
    pixel: tuple[int, int] | None = None
    # how many positives SelfPatch chooses; None: as the run did, else 4
    num_positives: int | None = None
    # out of a window of this side in patches; None: as the run did, else 3
    window_size: int | None = None
    # beyond the image's border: patches of the opposite side, or none; None: as the run did, else wrap
    padding_mode: Literal["circular", "none"] | None = None
    num_heads: NumHeads = None
    device: Device = "auto"


@dataclass(frozen=True)
class Embed:
    """Write what a model makes of every image: one vector, or one vector a patch."""

    # a run folder, an exported file, an original checkpoint or timm:NAME
    model: Model
    # a folder of images
    images: Images
    # the folder to write to
    out: Out
    # image: embeddings.npy, a row an image of files.txt; patch: patches/NAME.npy of rows x columns x width an image
    level: Literal["image", "patch"] = "image"
    # short side in pixels as the model gets them; None: what it was built for
    image_size: int | None = None
    # of the numbers written
    dtype: Literal["float16", "float32"] = "float16"
    num_heads: NumHeads = None
    device: Device = "auto"


@dataclass(frozen=True)
class Check:
    """Read every image once and say what a training run would meet: sizes, channels, damaged files, duplicates."""

    # the folder of images, searched with all its subfolders
    images: Images
    # a file for the list of images that cannot be read, each with the reason
    out: Path | None = None


@dataclass(frozen=True)
class Export:
    """Write a model as a file that others load, and print the line that loads it."""

    # a run folder, an exported file, an original checkpoint or timm:NAME
    model: Model
    # the file to write, or a folder for it
    out: Out
    # what is to load it
    format: Literal["timm"] = "timm"
    num_heads: NumHeads = None


@dataclass(frozen=True)
class Compare:
    """Put results of several models and tasks into one table, a row a model; two protocols never share a column."""

    # result.json files, or folders that have some below them
    results: Annotated[Positional[tuple[Path, ...]], arg(metavar="RESULT")]
    # which numbers are shown; none: the headline of every task; "all": every one
    metrics: tuple[str, ...] = ()
    # give each protocol of a task its own columns, instead of refusing the second
    split_protocols: bool = False
    # a file to write the table to: .md or .csv
    out: Path | None = None


@dataclass(frozen=True)
class Demo:
    """Make up scenes, train a tiny vision transformer on them for a few CPU minutes, and show what it learned."""

    # the folder to write to
    out: Out = Path("selfpatch-demo")
    # all random numbers follow from it
    seed: int = 0


def pretrain(arguments: list[str]) -> int:
    config_file, recipe = _peek(arguments, "--config"), _peek(arguments, "--recipe")
    if config_file and recipe:
        raise UserError("give --config or --recipe, not both: each of them says all settings")
    start = read_yaml(Path(config_file)) if config_file else find_recipe(recipe or PretrainConfig.recipe)

    @dataclass(frozen=True)
    class Pretrain:
        """Train a vision transformer on a folder of unlabeled images. The same command again goes on where a run was.

        Settings come from a recipe (--recipe NAME) or a file (--config OUT/config.yaml); each flag below changes one.
        """

        # the folder of images, searched with all its subfolders
        images: Images
        # the folder to write to
        out: Out
        settings: Annotated[PretrainConfig, Flat] = start
        # a config.yaml to take all settings from, instead of a recipe
        config: Path | None = None
        # a checkpoint folder of another run with the same settings to start from
        resume: Path | None = None
        # a backbone to start from: a run folder, an exported file, an original checkpoint or timm:NAME.TAG
        init_from: str | None = None

    given = _parse(Pretrain, arguments, "pretrain")

    from selfpatch.commands.pretrain import pretrain

    result = pretrain(given.images, given.out, config=given.settings, resume=given.resume, init_from=given.init_from)
    return 128 + result.stopped_by if result.stopped_by else 0


def evaluate(arguments: list[str]) -> int:
    # The task and its preset decide which protocol's settings there are.
    chosen_task = _peek(arguments, "--task") or "in-context-segmentation"
    if chosen_task not in TASKS:
        raise UserError(_unknown("task", chosen_task, TASKS))
    presets, layout = TASKS[chosen_task]
    chosen_preset = _peek(arguments, "--preset") or next(iter(presets))
    if chosen_preset not in presets:
        raise UserError(_unknown(f"preset of {chosen_task}", chosen_preset, presets))
    start = presets[chosen_preset]

    @dataclass(frozen=True)
    class Evaluate:
        """Score a model on a task; writes result.json and pictures, prints a table."""

        # a run folder, an exported file, an original checkpoint or timm:NAME
        model: Model
        data: Annotated[Path, arg(help=layout)]
        # the folder to write to
        out: Path
        protocol: Annotated[type(start), Flat] = start  # type: ignore[valid-type]
        task: Annotated[str, arg(help=f"what is scored: {', '.join(TASKS)}")] = chosen_task
        preset: Annotated[str, arg(help=f"named settings of the task: {', '.join(presets)}")] = chosen_preset
        num_heads: NumHeads = None
        device: Device = "auto"

    given = _parse(Evaluate, arguments, "evaluate")

    from selfpatch.commands.evaluate import evaluate
    from selfpatch.evaluation.head_training import StoppedError

    try:
        evaluate(**{name: value for name, value in vars(given).items() if name != "preset"})
    except StoppedError as stopped:
        print(stopped)
        return 128 + stopped.number
    return 0


def visualize(arguments: list[str]) -> int:
    given = _parse(Visualize, arguments, "visualize")

    from selfpatch.commands.visualize import visualize

    visualize(**vars(given))
    return 0


def export(arguments: list[str]) -> int:
    given = _parse(Export, arguments, "export")

    from selfpatch.commands.export import export

    export(**vars(given))
    return 0


def embed(arguments: list[str]) -> int:
    given = _parse(Embed, arguments, "embed")

    from selfpatch.commands.embed import embed

    embed(**vars(given))
    return 0


def check(arguments: list[str]) -> int:
    given = _parse(Check, arguments, "check")

    from selfpatch.commands.check import check

    check(given.images, out=given.out)
    return 0


def compare(arguments: list[str]) -> int:
    given = _parse(Compare, arguments, "compare")

    from selfpatch.commands.compare import compare

    compare(**vars(given))
    return 0


def demo(arguments: list[str]) -> int:
    given = _parse(Demo, arguments, "demo")

    from selfpatch.demo.tour import demo

    result = demo(given.out, seed=given.seed)
    return 128 + result.stopped_by if result.stopped_by else 0


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demo": (demo, "a few CPU minutes on made-up scenes: train, score, pictures, table"),
    "check": (check, "read every image of a folder and say what training would meet"),
    "pretrain": (pretrain, "train on a folder of unlabeled images"),
    "evaluate": (evaluate, "score the patches of a model on labelled images"),
    "compare": (compare, "put results of several models and tasks into one table"),
    "visualize": (visualize, "draw what the patches of a model see"),
    "embed": (embed, "write the vectors that a model makes of images"),
    "export": (export, "write a model as a file that timm loads"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    # Threads that spin while they wait make a run several times slower as soon as something else wants a core (data
    # workers, a neighbour on a shared machine): 130 against 20 images/s with one busy neighbour on two cores. Read by
    # OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    try:
        name, *rest = arguments
        if name not in COMMANDS:
            raise UserError(_unknown("command", name, COMMANDS))
        return COMMANDS[name][0](rest)
    except (ValueError, OSError) as error:
        if show_traceback:
            raise
        return _fail(error, 2)
    except RuntimeError as error:
        if show_traceback:
            raise
        return _fail(RuntimeError(f"{error} (--traceback shows where)"), 1)
    except KeyboardInterrupt:
        return 130


def overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: selfpatch COMMAND ...\n\n"
        "From a folder of unlabeled images to a vision transformer whose patches carry meaning.\n\n"
        f"{commands}\n\n"
        "selfpatch COMMAND --help says more of each; --traceback shows where an error came from.\n"
        f"Recipes of pretrain: {', '.join(RECIPES)}."
    )


def _parse(kind: Any, arguments: list[str], command: str) -> Any:
    """Arguments as the dataclass `kind`; tyro's words for a mistake become a ValueError."""
    prog = f"selfpatch {command}"
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(kind, prog=prog, args=arguments, config=(AvoidSubcommands,))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(f"{_in_words(boxes.getvalue(), arguments)} All flags: {prog} --help") from None


def _in_words(box: str, arguments: list[str]) -> str:
    """One paragraph out of the box that tyro draws for a mistake, with or without lines: title, message, hints."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith(("│", "  "))]
    lines = [line for line in lines if line.strip("─-")]
    text = " ".join(lines).partition(" For full helptext")[0]
    if found := re.match(r"Error parsing (--\S+): .* Argument helptext: (.*)", text):
        flag, allowed = found.groups()
        return f"{flag} cannot be {_peek(arguments, flag)!r}. It takes: {allowed}."
    if found := re.match(r"Error parsing (?:settings|protocol)?\.?(\S*): (.*)", text):  # of a group of settings
        group, message = found.groups()
        return f"{message}." if not group or message.startswith(f"{group}.") else f"in {group}: {message}."
    message, _, hints = text.partition(" Perhaps you meant: ")
    nearest = [line.split()[0] for line in lines if line.startswith("--")] if hints else []
    return f"{message.rstrip('.')}." + (f" Did you mean {' or '.join(nearest[:3])}?" if nearest else "")


def _peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag that decides which other flags there are."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


def _unknown(what: str, name: str, allowed: Any) -> str:
    nearest = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {what} {name!r}{hint} There are: {', '.join(allowed)}"


def _fail(error: Exception, code: int) -> int:
    print(f"selfpatch: {error}", file=sys.stderr)
    return code


def entry_point() -> None:
    sys.exit(main())
