"""`selfpatch check`: read every image of a folder once, and report what a training run would meet. Needs no torch."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from json import dumps
from pathlib import Path

from selfpatch.commands.check_report import Report, find_copies
from selfpatch.config import ImagesConfig
from selfpatch.data.cores import num_cores
from selfpatch.data.derive_pixels import derive_pixels
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.inspection.inspect_all import InspectionCache, inspect_all
from selfpatch.data.manifest import open_images
from selfpatch.errors import UserError, working
from selfpatch.output.printable import printable
from selfpatch.output.progress import track
from selfpatch.output.terminal import say, show_table

# After so long it is worth to keep what was found.
LONG_SECONDS = 60


def check(
    images: Path | str,
    *,
    labels: Path | str | None = None,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    json: bool = False,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Report:
    """Read all images below `images` and print a table and advice.

    Args:
        labels: a labeled set, whose images should not be among those to train on.
        out: a file for the list of unreadable images, one per line: name, tab, reason. Odd characters in names are
            escaped.
        cache: a file for what was found of each image; a second call reads only images that are new or changed.
        json: print all findings as JSON instead, and nothing else.
        include, exclude: patterns of file names, as in `ImageFolder`.

    Raises:
        UserError: there is no such folder, no image in it, or `out` or `cache` cannot be written.
    """
    # 1. All images, on all cores.
    if out is not None and (Path(out).is_dir() or not Path(out).parent.is_dir()):
        raise UserError(f"{out} cannot be a file for the list: it is a folder, or in none; give a file in a folder")
    settings = ImagesConfig(include=include, exclude=exclude)
    source = open_images(images, settings)
    splits = {} if labels is None else labeled_images(Path(labels))
    started = time.monotonic()
    kept = InspectionCache(Path(cache)) if cache is not None else None
    with closing(kept) if kept is not None else nullcontext():
        inspected = list(track(inspect_all(source, num_processes=num_cores(), cache=kept), "reading", len(source)))
        labeled = {
            split: [image for image in inspect_all(of_split, num_processes=num_cores(), cache=kept) if image.digest]
            for split, of_split in splits.items()
        }

    # 2. What they say together.
    good = [image for image in inspected if not image.problem]
    bad = [image for image in inspected if image.problem]
    links, left_out = (source.num_links, source.left_out) if isinstance(source, ImageFolder) else (0, Counter[str]())
    report = Report(
        good, bad, find_copies(good), links, left_out, source.notes, labeled, list(derived_settings(source, settings))
    )
    shown = printable(images)
    if json:
        say(dumps(report.as_json(shown), indent=2))
    else:
        show_table(report.table(shown))
        for text in report.advice(shown):
            say(f"- {text}")
        if kept is None and time.monotonic() - started > LONG_SECONDS:
            say("- the next call reads only what is new or changed, if this is kept: --cache FILE")
    if out is not None:
        lines = "".join(f"{image.name}\t{image.problem}\n" for image in bad)
        with working():
            Path(out).write_text(lines, encoding="utf-8")
    return report


def derived_settings(source: ImageFiles, settings: ImagesConfig) -> Iterator[str]:
    """Settings that pretraining takes from images that are not 8-bit RGB, or why it refuses them as they are."""
    try:
        for setting, (value, reason) in derive_pixels(source, None, settings).items():
            yield f"pretraining will set {setting} to {value}: {reason}"
    except UserError as error:
        yield f"pretraining refuses these images as they are: {error}"


def labeled_images(root: Path) -> dict[str, ImageFiles]:
    """The images of a labeled set by split: of masks, of classes, or all images below the folder.

    Raises:
        UserError: no such folder, or no image in it.
    """
    # Only here, as readers of labels need torch.
    from selfpatch.evaluation.datasets import segmentation
    from selfpatch.evaluation.datasets.splits import find_splits

    if root.is_dir() and segmentation.matches_layout(root):
        layout = segmentation.find_layout(root)
        pairs = {"training": layout.train, "validation": layout.val}
        return {split: ImageFiles.of_paths([image for image, _ in found]) for split, found in pairs.items() if found}
    try:
        splits = find_splits(root, layouts="") if root.is_dir() else None
    except UserError:
        splits = None
    if splits is not None:
        return {"training": ImageFolder(splits.train), "validation": ImageFolder(splits.val)}
    return {"only": open_images(root)}
