"""The loader: images/s by number of workers, memory over many epochs, and what a million paths cost.

    python -m benchmarks.loading            (from the root of the repository)

JPEGs of 500 x 375 pixels and about 110 KB become 2 crops of 224 and 8 of 96 pixels. Numbers of workers run by turns
(1 2 4 1 2 4 ...); a ratio compares runs of one round, and its median is shown with its spread. Memory is what is
resident and no file's. Paths are real: so many empty files are made in a temporary folder (TMPDIR chooses where), and
listed by a process of its own, whose peak is compared with that of a process that lists one file.
"""

import argparse
import functools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.augmentation import write_photograph
from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import training_batches
from selfpatch.data.loading.sampler import EpochSampler, sample_rng
from selfpatch.data.manifest import open_images
from selfpatch.data.shards.write_shards import write_shards

# What a run does with its images before the first batch, and what it took.
START_UP = """
import sys, time
from pathlib import Path
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import training_batches
from selfpatch.data.loading.sampler import EpochSampler
start = time.perf_counter()
images = ImageFolder(Path(sys.argv[1]))
images.fingerprint()
EpochSampler(len(images), 1, 0).indices(0)
seconds = time.perf_counter() - start
peak_kb = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(len(images), seconds, peak_kb)
"""


# The peak of a process that reads every image once.
READ_ALL = """
import sys
from pathlib import Path
from selfpatch.data.manifest import open_images
images = open_images(Path(sys.argv[1]))
for i in range(len(images)):
    images.location(i).read_bytes()
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="images timed in a round, after as many to warm up")
    parser.add_argument("--epochs", type=int, default=200, help="epochs over which memory must not grow")
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--only-shards", action="store_true", help="shards beside a folder, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "photographs"
        photographs.mkdir()
        for i in range(16):
            write_photograph(photographs / f"{i}.jpg", seed=i)
        if arguments.only_shards:
            print_shards(photographs, Path(name), arguments.rounds)
            return
        print_rates(photographs, arguments.workers, arguments.rounds, arguments.images)
        print_shards(photographs, Path(name), arguments.rounds)
        print_growth(photographs, arguments.epochs)
        print_paths(Path(name), arguments.paths)


def print_rates(folder: Path, workers: list[int], rounds: int, num_images: int) -> None:
    rates = {n: [] for n in workers}
    alone = {n: [] for n in workers if n}
    for _ in range(rounds):
        for n in workers:
            rates[n].append(images_per_second(folder, n, num_images))
            if n:
                alone[n].append(images_per_second_alone(folder, n, num_images))
    table = Table(
        "workers", "images/s", "times one worker", "as many processes, no loader", "times one such process",
        title=f"{os.cpu_count()} cores, {rounds} rounds",
    )  # fmt: skip
    for n, own in rates.items():
        row = [str(n), spread(own, ".0f"), times(own, rates.get(1))]
        if n:
            row += [spread(alone[n], ".0f"), times(alone[n], alone.get(1))]
        table.add_row(*row)
    Console(width=150).print(table)


def times(rates: list[float], of_one: list[float] | None) -> str:
    return "" if of_one is None else spread([a / b for a, b in zip(rates, of_one, strict=True)], ".2f")


def images_per_second_alone(folder: Path, num_processes: int, num_images: int) -> float:
    """Of processes that make crops and throw them away: what the machine gives at most."""
    with multiprocessing.Pool(num_processes, cv2.setNumThreads, (0,)) as pool:  # as workers do
        shares = [(folder, num_images // num_processes)] * num_processes
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            pool.starmap(make_crops, shares, chunksize=1)
        return sum(count for _, count in shares) / (time.perf_counter() - start)


def make_crops(folder: Path, num_images: int) -> None:
    images, multi_crop = ImageFolder(folder), MultiCrop(CropsConfig())
    for i in range(num_images):
        multi_crop(images.read(i % len(images)), sample_rng(0, 0, i))


def images_per_second(folder: Path, num_workers: int, num_images: int) -> float:
    """Between batches, once workers are started and nothing that was made ahead is left."""
    batch_size = 16
    num_steps = num_images // batch_size
    batches = open_batches(folder, batch_size, 2 * num_steps + 4, num_workers)
    for _ in range(num_steps):
        next(batches)
    start = time.perf_counter()
    for _ in range(num_steps):
        next(batches)
    return num_steps * batch_size / (time.perf_counter() - start)


def open_batches(folder: Path, batch_size: int, num_steps: int, num_workers: int):
    images = ImageFolder(folder)
    return training_batches(
        images,
        EpochSampler(len(images), batch_size, 0),
        MultiCrop(CropsConfig()),
        first_step=0,
        stop_step=num_steps,
        num_workers=num_workers,
    )


def print_shards(photographs: Path, scratch: Path, rounds: int) -> None:
    """The same images as files and as shards, in turns (A B A B), in CPU seconds of one process without workers."""
    folder = scratch / "files"
    folder.mkdir()
    for i, photograph in enumerate(sorted(photographs.iterdir()) * 16):
        shutil.copy(photograph, folder / f"{i:04d}.jpg")
    images = ImageFolder(folder)
    sources: dict[str, ImageFiles] = {"folder": images}
    for num_shards in (2, 64):
        shards = scratch / f"{num_shards} shards"
        num_bytes = sum(path.stat().st_size + 1024 for path in folder.iterdir())
        for _ in write_shards(images, shards, max_bytes=num_bytes // num_shards):
            pass
        sources[f"{len(list(shards.glob('*.tar')))} shards"] = open_images(shards)
    table = Table(
        "images from", "reading, us per image", "against the folder", "with crops, ms per image", "against the folder",
        "peak MB", title=f"{len(images)} images, CPU time, {rounds} rounds",
    )  # fmt: skip
    reading, cropping = {name: [] for name in sources}, {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            reading[name].append(1e6 * seconds_per_image(lambda i, source=source: source.location(i).read_bytes(), 256))
            make = functools.partial(crop_image, source, MultiCrop(CropsConfig()))
            cropping[name].append(1e3 * seconds_per_image(make, 32))
    for name in sources:
        path = folder if name == "folder" else scratch / name
        done = subprocess.run([sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, check=True)
        row = [spread(reading[name], ".0f"), times(reading[name], reading["folder"])]
        row += [spread(cropping[name], ".1f"), times(cropping[name], cropping["folder"])]
        table.add_row(name, *row, f"{int(done.stdout) / 1024:.0f}")
    Console(width=150).print(table)


def seconds_per_image(use: Callable[[int], object], count: int) -> float:
    """CPU time: neighbors on the machine take little of it away."""
    order = np.random.default_rng(0).permutation(256)[:count].tolist()
    start = time.process_time()
    for i in order:
        use(i)
    return (time.process_time() - start) / count


def crop_image(source: ImageFiles, multi_crop: MultiCrop, index: int) -> None:
    multi_crop(source.read(index), sample_rng(0, 0, index))


def print_growth(folder: Path, epochs: int) -> None:
    """From a tenth of the epochs on, when buffers have found their size."""
    steps_per_epoch, settled = 2, max(epochs // 10, 1)
    batches = open_batches(folder, 16 // steps_per_epoch, (settled + epochs) * steps_per_epoch, 2)
    for _ in range(settled * steps_per_epoch):
        next(batches)
    processes = {"parent": os.getpid()}
    processes |= {f"worker {i}": child.pid for i, child in enumerate(multiprocessing.active_children())}
    before = {name: resident_mb(pid) for name, pid in processes.items()}
    for _ in range(epochs * steps_per_epoch - 4):  # workers end with their last task
        next(batches)
    table = Table("process", "MB", "MB more", title=f"{epochs} more epochs of 16 images, 2 workers")
    for name, pid in processes.items():
        now = resident_mb(pid)
        table.add_row(name, f"{now:.0f}", f"{now - before[name]:+.1f}")
    Console(width=120).print(table)


def resident_mb(pid: int) -> float:
    """Memory of its own or inherited from its parent: what is written to, and so copied, does not change the sum."""
    return int(Path(f"/proc/{pid}/status").read_text(encoding="utf-8").partition("RssAnon:")[2].split()[0]) / 1024


def print_paths(folder: Path, num_paths: int) -> None:
    table = Table("files", "start-up s", "peak MB", "MB above one file", title="listing, fingerprint, first shuffle")
    for layout, per_folder in (("a thousand a folder", 1000), ("all in one folder", num_paths)):
        one, many = folder / f"one file, {layout}", folder / f"many files, {layout}"
        write_empty_files(one, 1, 1)
        write_empty_files(many, num_paths, per_folder)
        (_, _, base), (count, seconds, peak) = start_up(one), start_up(many)
        table.add_row(f"{count:,.0f}, {layout}", f"{seconds:.1f}", f"{peak:.0f}", f"{peak - base:.0f}")
    Console(width=120).print(table)


def write_empty_files(folder: Path, count: int, per_folder: int) -> None:
    """Paths of about 48 bytes, as ImageNet's are."""
    for start in range(0, count, per_folder):
        below = folder / "train" / f"n{start // per_folder:08d}"
        below.mkdir(parents=True)
        for i in range(start, min(start + per_folder, count)):
            os.close(os.open(below / f"n{start // per_folder:08d}_photograph_{i:07d}.JPEG", os.O_CREAT | os.O_WRONLY))


def start_up(folder: Path) -> tuple[float, float, float]:
    done = subprocess.run([sys.executable, "-c", START_UP, folder], capture_output=True, text=True, check=True)
    count, seconds, peak_kb = map(float, done.stdout.split())
    return count, seconds, peak_kb / 1024


def spread(numbers: list[float], digits: str) -> str:
    return f"{statistics.median(numbers):{digits}} ({min(numbers):{digits}} to {max(numbers):{digits}})"


if __name__ == "__main__":
    main()
