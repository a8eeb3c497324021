"""A run to make mistakes with, and refusals of the command line."""

import re
import shutil
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.config.io import write_yaml
from selfpatch.demo.scenes import write_scenes
from tests.refusals import Refused
from tests.small_models import tiny_config


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Twelve images of 48 px, and five with masks; a settings file that trains on them in moments."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=12, num_train=3, num_val=2, size=48, seed=0)
    write_yaml(tiny_config(), folder / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def pretrain(scenes):
    """`selfpatch pretrain` on the scenes with these options; returns the exit code."""

    def run(out: Path, *options, images: Path | None = None) -> int:
        start = ["pretrain", images or scenes / "images", out, "--config", scenes / "config.yaml"]
        return cli.main([str(argument) for argument in [*start, "--efficiency.num-workers", 0, *options]])

    return run


@pytest.fixture(scope="session")
def finished_run(pretrain, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert pretrain(out, "--optim.steps", "1") == 0
    return out


@pytest.fixture
def a_run(finished_run, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def refused(capsys):
    """`main(arguments)` refuses in a paragraph that holds every one of `parts`, and leaves `out` as it is."""
    refusal = Refused(capsys)
    return lambda arguments, *parts, out: refusal(arguments, *(re.escape(str(part)) for part in parts), out=out)


@pytest.fixture
def pretrain_refused(refused, scenes, tmp_path):
    """`pretrain` with these options is refused; OUT is new unless it is given."""

    def check(*options, says: tuple, images: Path | None = None, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        settings = [] if {"--config", "--recipe"} & set(options) else ["--config", scenes / "config.yaml"]
        arguments = ["pretrain", images or scenes / "images", out, *settings, "--efficiency.num-workers", 0, *options]
        return refused(arguments, *says, out=out)

    return check
