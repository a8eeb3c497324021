"""A run to make mistakes with, and what a refusal is: exit code 2, one paragraph, nothing written."""

import shutil
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.config.io import write_yaml
from selfpatch.demo.scenes import write_scenes
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


def contents(folder: Path) -> dict[str, bytes | None] | None:
    """Every file and folder below; None where there is no such folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(capsys):
    """`main(arguments)` refuses in a paragraph that holds every one of `parts`, and leaves `out` as it is."""

    def check(arguments: list, *parts: str, out: Path) -> str:
        before = contents(out)
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr().err
        assert code == 2, shown
        assert shown.startswith("selfpatch: ")
        assert "Traceback" not in shown
        assert "Error(" not in shown
        assert not any(f" {field}." in shown for field in ("settings", "protocol")), "a name of our own code"
        paragraph = [line for line in shown.splitlines() if not line.startswith("  ")]  # lists in it are indented
        assert len(paragraph) == 1 or (len(paragraph) == 2 and "\n  " in shown), shown
        missing = [part for part in map(str, parts) if part not in shown]
        assert not missing, f"{missing} not in: {shown}"
        assert contents(out) == before
        return shown

    return check


@pytest.fixture
def pretrain_refused(refused, scenes, tmp_path):
    """`pretrain` with these options is refused; OUT is new unless it is given."""

    def check(*options, says: tuple, images: Path | None = None, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        settings = [] if {"--config", "--recipe"} & set(options) else ["--config", scenes / "config.yaml"]
        arguments = ["pretrain", images or scenes / "images", out, *settings, "--efficiency.num-workers", 0, *options]
        return refused(arguments, *says, out=out)

    return check
