"""The same batches whoever makes them, and an orderly end whatever happens to the workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.config import RGB_8, CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import Batch, training_batches
from selfpatch.data.loading.sampler import EpochSampler, sample_rng
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.errors import RunFailedError

SMALL = CropsConfig(global_size=32, local_size=16, num_local=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """47 images of mixed formats, two of which cannot be read and one of which is small."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(44):
        pixels = rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{('jpg', 'png')[i % 2]}")
    (folder / "empty.jpg").touch()
    (folder / "torn.jpg").write_bytes((folder / "00.jpg").read_bytes()[:999])
    Image.fromarray(pixels[:20]).save(folder / "small.png")
    return folder


def batches(
    folder: Path, *, seed: int = 0, crops: CropsConfig = SMALL, multi_crop: MultiCrop | None = None, **settings
) -> list[Batch]:
    """The first six batches of ten, in this process, unless told otherwise."""
    images = ImageFolder(folder)
    settings = {"first_step": 0, "stop_step": 6, "num_workers": 0, **settings}
    return list(
        training_batches(images, EpochSampler(len(images), 10, seed), multi_crop or MultiCrop(crops), **settings)
    )


def equal(a: Batch, b: Batch) -> bool:
    return (
        a.step == b.step
        and all(torch.equal(x, y) for x, y in zip(a.crops.tensors(), b.crops.tensors(), strict=True))
        and a.bad_images == b.bad_images
        and a.num_upsampled == b.num_upsampled
    )


# 1. What is in a batch


def test_a_batch_is_the_crops_of_its_images(folder):
    images, multi_crop = ImageFolder(folder), MultiCrop(SMALL)
    sampler = EpochSampler(len(images), 10, seed=5)
    for batch in batches(folder, seed=5):
        assert batch.crops.global_crops.shape == (2, 10, 3, 32, 32)
        assert batch.crops.local_crops.shape == (3, 10, 3, 16, 16)
        for place, index in enumerate(sampler.indices(batch.step).tolist()):
            if images.name(index) in ("empty.jpg", "torn.jpg"):
                continue
            crops = multi_crop(images.read(index), sample_rng(5, sampler.epoch(batch.step), index))
            assert torch.equal(batch.crops.global_crops[:, place], crops.global_crops[:, 0])
            assert torch.equal(batch.crops.local_crops[:, place], crops.local_crops[:, 0])


def test_bad_images_are_replaced_and_listed(folder):
    seen = [bad for batch in batches(folder, stop_step=40) for bad in batch.bad_images]
    assert {name for name, _ in seen} == {"empty.jpg", "torn.jpg"}
    assert dict(seen)["empty.jpg"] == "empty file"
    assert batches(folder, stop_step=40)[-1].crops.global_crops.float().std(dim=(0, 2, 3, 4)).min() > 10


def test_small_images_are_counted(folder):
    images = ImageFolder(folder)
    small = [i for i in range(len(images)) if images.name(i) == "small.png"]
    sampler = EpochSampler(len(images), 10, 0)
    for batch in batches(folder):
        if not batch.bad_images:
            assert batch.num_upsampled == np.isin(small, sampler.indices(batch.step)).sum()


class InMemory:
    """A source that is no folder."""

    pixels = RGB_8

    def __len__(self) -> int:
        return 12

    def read(self, index: int) -> np.ndarray:
        if index == 5:
            raise UnreadableImage("not today")
        return np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return "in memory"

    def content_fingerprint(self) -> str:
        return "always the same"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_source_of_images(num_workers):
    made = training_batches(InMemory(), EpochSampler(12, 12, 0), MultiCrop(SMALL), first_step=0, stop_step=1,
                            num_workers=num_workers)  # fmt: skip
    (batch,) = made
    assert batch.bad_images == [("picture 5", "not today")]
    place = EpochSampler(12, 12, 0).indices(0).tolist().index(7)
    crops = MultiCrop(SMALL)(InMemory().read(7), sample_rng(0, 0, 7))
    assert torch.equal(batch.crops.global_crops[:, place], crops.global_crops[:, 0])


def test_without_local_crops(folder):
    batch = batches(folder, crops=CropsConfig(global_size=32, num_local=0), stop_step=1)[0]
    assert batch.crops.local_crops is None
    assert batch.crops.global_crops.shape == (2, 10, 3, 32, 32)


# 2. The same whoever makes it


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers(folder, num_workers):
    one, other = batches(folder), batches(folder, num_workers=num_workers)
    assert [batch.step for batch in other] == list(range(6))
    assert all(map(equal, one, other))


@pytest.mark.parametrize("first_step", range(7))
def test_any_first_step(folder, first_step):
    unbroken, resumed = batches(folder), batches(folder, first_step=first_step, num_workers=first_step % 2)
    assert [batch.step for batch in resumed] == list(range(first_step, 6))
    assert all(map(equal, unbroken[first_step:], resumed))


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_the_batch_of_one(folder, world_size):
    alone = batches(folder, stop_step=3)
    ranks = [batches(folder, stop_step=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.crops.global_crops for part in parts], dim=1), batch.crops.global_crops)
        assert torch.equal(torch.cat([part.crops.local_crops for part in parts], dim=1), batch.crops.local_crops)
        assert [bad for part in parts for bad in part.bad_images] == batch.bad_images


def test_other_seeds_give_other_crops(folder):
    assert not torch.equal(batches(folder)[0].crops.global_crops, batches(folder, seed=1)[0].crops.global_crops)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_numbers_are_left_alone(folder, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(folder, num_workers=num_workers, stop_step=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_everything_can_be_sent_to_a_spawned_worker(folder, monkeypatch):
    """As on macOS and Windows, where workers do not inherit memory."""
    method = multiprocessing.get_start_method()
    one = batches(folder, stop_step=1)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        other = batches(folder, stop_step=1, num_workers=1)
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert all(map(equal, one, other))


# 3. Mistakes and accidents


def test_a_batch_that_ranks_cannot_share(folder):
    with pytest.raises(ValueError, match="10 images cannot be shared equally by 3 processes"):
        batches(folder, world_size=3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_gone_in_mid_run(folder, tmp_path, num_workers):
    images = ImageFolder(folder)
    images.folders = [tmp_path]  # as if the disk had been unmounted
    sampler = EpochSampler(len(images), 10, 0)
    with pytest.raises(ValueError, match=r"^20 images in a row.*No such file"):
        next(training_batches(images, sampler, MultiCrop(SMALL), first_step=0, stop_step=2, num_workers=num_workers))
    assert not multiprocessing.active_children()


class Stuck(MultiCrop):
    def write(self, image, rng, place):
        time.sleep(1000)


class Broken(MultiCrop):
    def write(self, image, rng, place):
        raise RuntimeError("a mistake in the code")


def start(
    folder: Path, multi_crop: type[MultiCrop] = MultiCrop, num_workers: int = 2, timeout_s: float = 60
) -> Iterator[Batch]:
    images = ImageFolder(folder)
    return training_batches(images, EpochSampler(len(images), 10, 0), multi_crop(SMALL), first_step=0, stop_step=10_000,
                            num_workers=num_workers, timeout_s=timeout_s)  # fmt: skip


def workers() -> list:
    return multiprocessing.active_children()


def test_a_killed_worker(folder):
    """Is told when its images are due, with what to do, and not in the middle of something else."""
    batches = start(folder)
    next(batches)
    killed = workers()[0].pid
    os.kill(killed, signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(RunFailedError, match=rf"process {killed} died \(SIGKILL\).*start the same command again"):
        list(batches)
    assert not workers()


def test_a_hung_worker(folder):
    with pytest.raises(RunFailedError, match="no result for 1 s. Images of step 0 were due, the first of them "):
        next(start(folder, Stuck, num_workers=1, timeout_s=1))
    assert not workers()


def test_a_stopped_worker(folder):
    """As by Ctrl-Z sent to it, a debugger or a frozen container."""
    batches = start(folder, timeout_s=1)
    next(batches)
    stopped = workers()[0].pid
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(RunFailedError, match=f"process {stopped} has given no result for 1 s. Images of step"):
        list(batches)
    assert not workers()


def test_an_error_of_our_own_is_not_taken_for_an_accident(folder):
    with pytest.raises(RuntimeError, match=r"^a mistake in the code$"):
        next(start(folder, Broken))
    assert not workers()


def test_dropped_early(folder):
    start(folder)
    assert not workers()
    batches = start(folder)
    next(batches)
    batches.close()
    assert not workers()
    batches = start(folder)
    next(batches)
    del batches
    assert not workers()


# What follows needs a main process of its own.


def run(script: str, folder: Path) -> subprocess.CompletedProcess:
    script = (
        "import os, signal, sys, time\nfrom tests.data.loading.test_loader import *\nfolder = Path(sys.argv[1])\n"
        + script
    )
    command = [sys.executable, "-W", "error", "-c", script, folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)


def test_signals_to_the_whole_group_leave_workers_alone(folder):
    """Ctrl-C in a terminal, `timeout`, SLURM: the main process decides what they mean, here nothing."""
    script = """
got, batches = [], start(folder)
next(batches)
before = {worker.pid for worker in workers()}
assert len(before) == 2
for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, _: got.append(number))
    if os.fork() == 0:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.killpg(0, getattr(signal, name))
        os._exit(0)
    os.wait()
    time.sleep(0.2)
    for _ in range(20):
        next(batches)
assert got == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
assert {worker.pid for worker in workers()} == before
started = time.monotonic()
del batches
assert not workers()
assert time.monotonic() - started < 4
"""
    done = run(script, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("multi_crop", ["MultiCrop", "Stuck"])
def test_the_main_process_ends_while_batches_are_in_use(folder, multi_crop):
    """At its end Python sends SIGTERM to its workers and waits for them; ours are gone by then."""
    script = f"kept = [start(folder, {multi_crop}, num_workers=1)]; kept.append(kept); time.sleep(0.5); sys.exit(7)"
    done = run(script, folder)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@pytest.mark.slow
def test_memory_of_workers_does_not_grow(folder):
    script = """
def private_kib(worker):
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))

batches = start(folder)
for _ in range(60):
    next(batches)
before = [private_kib(worker) for worker in workers()]
for _ in range(200):
    next(batches)
print(max(private_kib(worker) - kib for worker, kib in zip(workers(), before)))
"""
    done = run(script, folder)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4_000
