"""Validation images never enter pretraining: those among the images are found by content, left out, and listed."""

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from selfpatch.data.cores import num_cores
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.image_folder import plural
from selfpatch.data.inspection.inspect_all import InspectionCache, inspect_all
from selfpatch.data.inspection.leaks import find_leaks
from selfpatch.data.same_content import same_content
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.printable import printable
from selfpatch.output.progress import track

# Fewer images are no pretraining.
MIN_IMAGES = 8

LeftOut = dict[
    int, tuple[Path, bool]
]  # index of an image -> the validation image that it is, and if bytes are the same


def find_validation_images(
    images: ImageFiles, validation: Sequence[Path], *, near_duplicates: bool, cache: Path | None
) -> LeftOut:
    """The images that are validation images by their bytes, or look like one.

    Args:
        near_duplicates: also those that look alike, for which every image is read once.
        cache: a file for what was found of each image, so that a second call reads what is new.
    """
    paths = [images.path(index) for index in range(len(images))]
    if not near_duplicates:
        sizes = {path.stat().st_size for path in validation}
        candidates = [path for path in paths if path.exists() and path.stat().st_size in sizes]
        same = same_content(candidates, ImageFiles.of_paths(validation))
        return {index: (validation[same[path]], True) for index, path in enumerate(paths) if path in same}
    kept = None if cache is None else InspectionCache(cache)
    with closing(kept) if kept is not None else nullcontext():
        found = list(track(inspect_all(images, num_processes=num_cores(), cache=kept), "reading", len(images)))
        held_out = ImageFiles.of_paths(validation)
        wanted = list(inspect_all(held_out, num_processes=num_cores(), cache=kept))
    index_of = {id(image): index for index, image in enumerate(found)}
    leaks = ((index_of[id(leak.image)], leak) for leak in find_leaks(found, wanted))
    return {index: (leak.labeled.path, leak.is_exact) for index, leak in sorted(leaks, key=lambda pair: pair[0])}


def require_enough_images(images: ImageFiles, left_out: LeftOut, labels: Path) -> None:
    """
    Raises:
        UserError: too few images are left to train on.
    """
    num_left = len(images) - len(left_out)
    if num_left >= MIN_IMAGES:
        return
    if not left_out:
        raise UserError(f"there are {len(images)} images to train on; at least {MIN_IMAGES} are needed")
    index, (validation, _) = next(iter(left_out.items()))
    raise UserError(
        f"{len(left_out)} of {len(images)} images are validation images of {labels} or look like one "
        f"({images.name(index)} is {printable(validation)}, say); they never enter pretraining, which leaves "
        f"{num_left} to train on, and at least {MIN_IMAGES} are needed: give more images, or other labeled images"
    )


def left_out_sentence(images: ImageFiles, left_out: LeftOut, file: Path | None) -> str:
    """How many images are left out, and the file that lists them, if one was written."""
    if not left_out:
        return f"none of the {len(images):,} images is a validation image"
    exact = sum(is_exact for _, is_exact in left_out.values())
    alike = len(left_out) - exact
    return (
        f"{plural(len(left_out), 'image is', 'images are')} left out of pretraining, of {len(images):,}: {exact} with "
        f"the content of a validation image, {alike} that look like one{f' ({file} lists them)' if file else ''}"
    )


def write_left_out(images: ImageFiles, left_out: LeftOut, file: Path) -> None:
    """One line per image: its name, the validation image, and "same" or "alike", with tabs between."""
    lines = [
        f"{images.name(index)}\t{printable(validation)}\t{'same' if is_exact else 'alike'}\n"
        for index, (validation, is_exact) in left_out.items()
    ]
    with atomic_write(file) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def write_manifest(images: ImageFiles, left_out: LeftOut, file: Path) -> None:
    """The images that are left, in JSON lines, as every training reads them."""
    lines = [
        json.dumps({"path": str(images.path(index).absolute())}) + "\n"
        for index in range(len(images))
        if index not in left_out
    ]
    with atomic_write(file) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def remaining(images: ImageFiles, left_out: LeftOut) -> ImageFiles:
    """The images that are left, as the manifest lists them."""
    return ImageFiles.of_paths(images.path(index) for index in range(len(images)) if index not in left_out)
