"""The wheel, installed by plain pip outside of the repository: the command, the import, the demo."""

import os
import resource
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with pip and the wheel. Its dependencies are those of this one, which takes seconds."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/pip", "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Alone in sys.path, and behind its own packages: what that folder says of editable packages is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(environment: Path, *command: str, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [environment / "bin" / command[0], *command[1:]], cwd=cwd, env=clean, check=True, capture_output=True, text=True
    ).stdout


def test_the_package_is_that_of_the_wheel(environment, tmp_path):
    place = run(environment, "python", "-c", "import selfpatch; print(selfpatch.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(environment)


def test_import_without_torch(environment, tmp_path):
    code = "import selfpatch, sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    run(environment, "python", "-c", code, cwd=tmp_path)


def test_help_in_under_a_second(environment, tmp_path):
    """By the time of a core, the best of some: the clock also counts what else the machine does."""
    seconds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "pretrain" in run(environment, "selfpatch", "--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (path for path in (ROOT / "selfpatch").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    sources = {path.relative_to(ROOT).as_posix() for path in files}  # modules, and what pages are made of
    assert sources | {"selfpatch/py.typed"} == {name for name in names if name.startswith("selfpatch/")}


def test_the_demo_starts(environment, tmp_path):
    """It makes its scenes and trains; stopped after its first steps it has saved."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [environment / "bin/selfpatch", "demo"]
    with subprocess.Popen(command, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith("step ") for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert list((tmp_path / "selfpatch-demo/base/checkpoints").glob("step-*"))


def test_pythons_of_the_classifiers():
    """From the first that is allowed on, one after another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [line.removeprefix("Programming Language :: Python :: 3.") for line in project["classifiers"]]
    minors = [int(minor) for minor in named if minor.isdecimal()]
    assert project["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert sys.version_info.minor in minors
