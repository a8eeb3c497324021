"""Options of `selfpatch pretrain`: every setting of the recipe or file that the run starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from selfpatch.cli.command import Command, given_value
from selfpatch.cli.options import FLAT, Images, Out
from selfpatch.config.io import read_yaml
from selfpatch.config.pretrain import PretrainConfig
from selfpatch.errors import UserError
from selfpatch.recipes import add_objectives, find_recipe


def options(arguments: Sequence[str]) -> type:
    config_file, recipe = given_value(arguments, "--config"), given_value(arguments, "--recipe")
    if config_file and recipe:
        raise UserError("give --config or --recipe, not both: each of them gives all settings")
    start = read_yaml(Path(config_file)) if config_file else find_recipe(recipe or PretrainConfig.recipe)
    start = add_objectives(start, *(given_value(arguments, "--add") or "").replace(",", " ").split())

    @dataclass(frozen=True)
    class Pretrain:
        """Train a vision transformer on a folder of unlabeled images. The same command again resumes a stopped run.

        Settings come from a recipe (--recipe NAME) or a file (--config OUT/config.yaml); each option changes one, and
        --add OBJECTIVE adds one part to the loss.
        """

        images: Images
        out: Out
        settings: Annotated[PretrainConfig, FLAT] = start
        # config.yaml of a run, to take all settings from instead of a recipe; None: a recipe
        config: Path | None = None
        # objectives to add to those of the recipe, e.g. selfpatch or selfpatch,koleo; at their default settings, which
        # their own options change; None: none
        add: str | None = None
        # checkpoint folder of another run with the same settings, to start from; None: none
        resume: Path | None = None
        # backbone to start from: a run folder, an exported file, an original checkpoint or timm:NAME.TAG; None: random
        # weights
        init_from: str | None = None
        # print what the run would do, write and take (settings that follow from the images, sizes, memory, time), and
        # write nothing
        dry_run: bool = False
        # number of GPUs of this machine to train on, a process each; without GPUs, of processes. Several machines are
        # started by torchrun or srun
        devices: int = 1

        def __post_init__(self):
            if self.devices < 1:
                raise UserError(f"--devices is {self.devices}; it must be 1 or more")

    return Pretrain


def keywords(given: Any) -> dict[str, Any]:
    values = vars(given)
    return {name: values[name] for name in ("images", "out", "resume", "init_from", "dry_run")} | {
        "config": given.settings
    }


COMMAND = Command("train on a folder of unlabeled images", options, "selfpatch.commands.pretrain:pretrain", keywords)
