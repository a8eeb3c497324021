"""The inputs of all rows, an unbroken run to compare with, and the hard limit of every test."""

from pathlib import Path

import pytest

from tests.faults.command import Runs, write_inputs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "faults" in Path(item.path).parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def runs(scenes, tmp_path):
    runs = Runs(scenes, tmp_path)
    yield runs
    runs.kill()


@pytest.fixture(scope="session")
def unbroken(scenes, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    runs = Runs(scenes, tmp_path_factory.mktemp("unbroken"))
    runs.run()
    return runs.out
