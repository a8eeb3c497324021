"""`selfpatch check`: read every image of a folder once, and report what a training run would meet. Needs no torch."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfpatch.config import CropsConfig, RunConfig, rows_columns
from selfpatch.data.image_folder import ImageFolder, plural
from selfpatch.data.reading.decode import UnreadableImage, decode_image
from selfpatch.data.reading.image_file import read_bytes
from selfpatch.errors import UserError, working
from selfpatch.output.printable import printable
from selfpatch.output.progress import say, track
from selfpatch.recipes import recommended_recipe

CROP = min(rows_columns(CropsConfig().global_size))  # of the recipes for real images
# Threads, for decoders let others run meanwhile: they wait for the disk and fill the cores without a start of seconds.
NUM_THREADS, IMAGES_AT_ONCE = 8, 512


class Checked(NamedTuple):
    """One file: its pixels as they are read, or the reason why there are none.

    Args:
        size: (rows, columns).
        format: by content, e.g. "JPEG".
        kind: how pixels are stored, e.g. "gray".
        warning: of the decoder, though all pixels are there.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    format: str = ""
    kind: str = ""
    digest: bytes = b""
    warning: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        return printable(self.path)


@dataclass(frozen=True)
class Report:
    """Counts and findings of all images of a folder."""

    good: list[Checked]
    bad: list[Checked]
    copies: list[tuple[Checked, Checked]]  # a file, and an earlier one with the same content
    num_links: int  # links to folders, not followed
    left_out: Counter[str]  # files that are no images by their endings, by these
    notes: list[str]  # on both of them

    @property
    def short_sides(self) -> np.ndarray:
        return np.array([min(image.size) for image in self.good] or [0])

    @property
    def small_fraction(self) -> float:
        return float((self.short_sides < CROP).mean())

    @property
    def formats(self) -> Counter[str]:
        return Counter(image.format for image in self.good)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(image.kind for image in self.good)

    @property
    def warned(self) -> list[Checked]:
        return [image for image in self.good if image.warning]


def check(images: Path | str, *, out: Path | str | None = None) -> Report:
    """Read all images below `images` and print a table and advice.

    Args:
        out: a file for the list of unreadable images, one per line: name, tab, reason. Odd characters in names are
            escaped.

    Raises:
        UserError: there is no such folder, no image in it, or `out` cannot be written.
    """
    if out is not None and (Path(out).is_dir() or not Path(out).parent.is_dir()):
        raise UserError(f"{out} cannot be a file for the list: it is a folder, or in none; give a file in a folder")
    folder = ImageFolder(Path(images))
    good, bad, first_of, copies = [], [], {}, []
    for image in track(check_all(folder), "reading", len(folder)):
        (bad if image.problem else good).append(image)
        if image.digest and (first := first_of.setdefault(image.digest, image)) is not image:
            copies.append((image, first))
    report = Report(good, bad, copies, folder.num_links, folder.left_out, folder.notes)
    Console().print(table(report, printable(images)))
    for text in advice(report, images):
        say(f"- {text}")
    if out is not None:
        lines = "".join(f"{image.name}\t{image.problem}\n" for image in bad)
        with working():
            Path(out).write_text(lines, encoding="utf-8")
    return report


def check_all(folder: ImageFolder) -> Iterator[Checked]:
    """Every image, in the order of the folder."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(folder), IMAGES_AT_ONCE):
            indices = range(start, min(start + IMAGES_AT_ONCE, len(folder)))
            yield from pool.map(lambda index: check_image(folder.path(index)), indices)


def check_image(path: Path) -> Checked:
    try:
        data = read_bytes(path)
        image = decode_image(data)
    except UnreadableImage as error:
        return Checked(path, problem=printable(" ".join(str(error).split())))
    digest = hashlib.sha256(data).digest()
    return Checked(path, image.pixels.shape[:2], image.format, image.kind, digest, printable(image.warning))


def table(report: Report, title: str) -> Table:
    table = Table("images", str(len(report.good)), title=escape(title), title_justify="left")
    low, median, high = (f"{side:.0f}" for side in np.percentile(report.short_sides, (0, 50, 100)))
    table.add_row("formats", counted(report.formats))
    table.add_row("short side, px", f"{low} to {high}, median {median}")
    table.add_row("channels", counted(report.kinds))
    table.add_row(f"smaller than {CROP} px", f"{report.small_fraction:.0%}")
    table.add_row("unreadable", str(len(report.bad)))
    table.add_row("read with a warning", str(len(report.warned)))
    table.add_row("exact copies", str(len(report.copies)))
    table.add_row("other files, left out", str(report.left_out.total()))
    return table


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def advice(report: Report, images: Path | str) -> Iterator[str]:
    """Advice for a training run, most urgent first."""
    num_images = len(report.good) + len(report.bad)
    if report.bad:
        shown = "; ".join(f"{image.name}: {image.problem}" for image in report.bad[:3])
        yield (
            f"{len(report.bad)} of {num_images} files cannot be read ({shown}): fix or remove them. Training "
            f"puts other images in their places, and stops above {RunConfig().max_bad_fraction:.0%}; "
            "--out FILE lists all"
        )
    if report.copies:
        copy, original = (image.name for image in report.copies[0])
        copies = plural(len(report.copies), "file is a copy", "files are copies")
        yield f"{copies} ({copy} of {original}, say), which count more than once: remove them"
    if report.small_fraction > 0:
        # As much as nine of ten images have, in whole patches of 16 pixels.
        size = max(int(np.percentile(report.short_sides, 10)) // 16 * 16, 32)
        hint = f"; --crops.global-size {size} fits nine of ten" if size < CROP and report.small_fraction > 0.1 else ""
        yield f"{report.small_fraction:.0%} are smaller than a global crop of {CROP} px and would be enlarged{hint}"
    if deep := [kind for kind in report.kinds if "-bit " in kind]:
        yield f"{' and '.join(deep)}: levels are scaled to 8 bits; where only some are used, stretch them before"
    if report.warned:
        first = report.warned[0]
        files = plural(len(report.warned), "file is", "files are")
        yield f"{files} read although the decoder warns ({first.name}: {first.warning}): no pixel is missing"
    yield from report.notes
    if report.good:
        recipe = recommended_recipe(len(report.good))
        yield f"{len(report.good)} images: selfpatch pretrain {printable(images)} RUN --recipe {recipe}"
