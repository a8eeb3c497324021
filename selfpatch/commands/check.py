"""`selfpatch check`: read every image of a folder once, and say what a training run would meet. Needs no torch."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from selfpatch.commands.hardware import num_cores
from selfpatch.config import CropsConfig, RunConfig, rows_columns
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.reading.decode import UnreadableImage, read_image
from selfpatch.errors import UserError, working
from selfpatch.output.progress import say, track

CROP = min(rows_columns(CropsConfig().global_size))  # of the recipes for real images
SMALL_DATA = 100_000  # images up to which the recipes for small data are meant
KINDS = {"RGB": "color", "L": "gray", "1": "black and white", "P": "palette", "CMYK": "CMYK"}


class Checked(NamedTuple):
    """One file: its pixels as they are read, or the reason why there are none."""

    path: Path
    size: tuple[int, int] = (0, 0)  # (rows, columns)
    kind: str = ""
    digest: bytes = b""
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """What is known of the images of a folder."""

    good: list[Checked]
    bad: list[Checked]
    copies: list[tuple[Path, Path]]  # a file, and an earlier one with the same content
    num_links: int  # links to folders, not followed

    @property
    def short_sides(self) -> np.ndarray:
        return np.array([min(image.size) for image in self.good] or [0])

    @property
    def small_share(self) -> float:
        return float((self.short_sides < CROP).mean())

    @property
    def kinds(self) -> Counter[str]:
        return Counter(image.kind for image in self.good)


def check(images: Path | str, *, out: Path | str | None = None) -> Report:
    """Read all images below `images` and print a table and advice; the list of unreadable ones goes to the file `out`.

    Raises:
        UserError: there is no such folder, no image in it, or `out` cannot be written.
    """
    if out is not None and (Path(out).is_dir() or not Path(out).parent.is_dir()):
        raise UserError(f"{out} cannot be a file for the list: it is a folder, or in none; give a file in a folder")
    folder = ImageFolder(Path(images))
    good, bad, first_of, copies = [], [], {}, []
    for image in track(check_all(folder), "reading", len(folder)):
        (bad if image.problem else good).append(image)
        if image.digest and (first := first_of.setdefault(image.digest, image.path)) != image.path:
            copies.append((image.path, first))
    report = Report(good, bad, copies, folder.num_links)
    Console().print(table(report, str(images)))
    for text in advice(report, images):
        say(f"- {text}")
    if out is not None:
        lines = "".join(f"{image.path}\t{image.problem}\n" for image in bad)
        with working():
            Path(out).write_text(lines, encoding="utf-8", errors="surrogateescape")
    return report


def check_all(folder: ImageFolder) -> Iterator[Checked]:
    """Every image, in the order of the folder, by as many processes as there are cores."""
    paths = (folder.path(index) for index in range(len(folder)))
    num_processes = min(num_cores(), 16, len(folder) // 100)
    if num_processes <= 1:
        yield from map(check_image, paths)
        return
    # Not forked: the progress bar is drawn by a thread of this process.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check_image, paths, chunksize=32)


def check_image(path: Path) -> Checked:
    try:
        rows, columns, _ = read_image(path).shape
        with warnings.catch_warnings(action="ignore"), Image.open(path) as header, path.open("rb") as file:
            return Checked(path, (rows, columns), _kind(header), hashlib.file_digest(file, "sha256").digest())
    except UnreadableImage as error:
        return Checked(path, problem=" ".join(str(error).split()))


def _kind(header: Image.Image) -> str:
    if header.mode.startswith("I;16"):
        return "16-bit grey"
    return "with transparency" if header.has_transparency_data else KINDS.get(header.mode, header.mode)


def table(report: Report, title: str) -> Table:
    table = Table("images", str(len(report.good)), title=title, title_justify="left")
    low, median, high = (f"{side:.0f}" for side in np.percentile(report.short_sides, (0, 50, 100)))
    table.add_row("short side, px", f"{low} to {high}, median {median}")
    table.add_row("channels", ", ".join(f"{count} {kind}" for kind, count in report.kinds.most_common()))
    table.add_row(f"smaller than {CROP} px", f"{report.small_share:.0%}")
    table.add_row("unreadable", str(len(report.bad)))
    table.add_row("exact copies", str(len(report.copies)))
    return table


def advice(report: Report, images: Path | str) -> Iterator[str]:
    """What follows for a training run, most urgent first."""
    num_images = len(report.good) + len(report.bad)
    if report.bad:
        shown = "; ".join(f"{image.path}: {image.problem}" for image in report.bad[:3])
        yield (
            f"{len(report.bad)} of {num_images} files cannot be read ({shown}): fix or remove them. Training "
            f"puts other images in their places, and stops above {RunConfig().max_bad_fraction:.0%}; "
            "--out FILE lists all"
        )
    if report.copies:
        copy, original = report.copies[0]
        yield f"{len(report.copies)} files are copies ({copy} of {original}, say) and count more than once: remove them"
    if report.small_share > 0:
        # As much as nine of ten images have, in whole patches of 16 pixels.
        size = max(int(np.percentile(report.short_sides, 10)) // 16 * 16, 32)
        hint = f"; --crops.global-size {size} fits nine of ten" if size < CROP and report.small_share > 0.1 else ""
        yield f"{report.small_share:.0%} are smaller than a global crop of {CROP} px and would be enlarged{hint}"
    if report.kinds["16-bit grey"]:
        yield "16-bit pixels are divided by 257: where they fill only a part of the range, stretch them before training"
    if report.num_links:
        yield f"{report.num_links} links to folders are not followed; give their targets"
    if report.good:
        recipe = "dino-selfpatch-small" if len(report.good) <= SMALL_DATA else "dino-selfpatch"
        yield f"{len(report.good)} images: selfpatch pretrain {images} RUN --recipe {recipe}"
