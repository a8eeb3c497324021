"""Times of a run: read from its lines as they come, with the processes that it starts."""

import os

import pytest

from benchmarks import startup
from benchmarks.augmentation import write_photograph


def test_two_steps(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        write_photograph(images / f"{i}.jpg", seed=i)
    small = [
        "--optim.batch-size",
        "2",
        "--backbone.embed-dim",
        "24",
        "--backbone.depth",
        "1",
        "--backbone.num-heads",
        "2",
    ]
    run = startup.measure(images, tmp_path / "run", 2, small)
    assert 0 < run.to_first_step < run.total and 0 < run.after_last_step < run.total
    assert run.bookkeeping < run.total - run.to_first_step
    assert 0 < run.cpu_to_first_step < run.cpu and run.cpu_after_last_step < run.cpu
    with pytest.raises(RuntimeError, match="optim.batch-size"):
        startup.measure(images, tmp_path / "refused", 2, ["--optim.batch-size", "3000"])


def test_cpu_seconds_of_this_session():
    assert startup.cpu_seconds(os.getsid(0)) > 0
    assert startup.cpu_seconds(-1) != startup.cpu_seconds(-1)
