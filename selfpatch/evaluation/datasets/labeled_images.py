"""Images and the masks that label their pixels: found as pairs, read with errors that name the file, and checked."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int16, Real, UInt8

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_folder import ENDINGS
from selfpatch.data.reading.decode import UnreadableImage, read_image, read_size
from selfpatch.data.reading.labels import read_stored_numbers, stored_size
from selfpatch.errors import UserError
from selfpatch.evaluation.metrics import IGNORED

# So many images are decoded before anything is trained, about 20 seconds on one core: those for validation first, which
# else are read only after hours of training. Of larger sets these are spread evenly, and of the others sizes are read
# from headers; what is wrong with their pixels is said when they are read.
NUM_DECODED = 2000

NUM_LABELS = 256
UNKNOWN = -1  # the class of a label without meaning

T = TypeVar("T")
Pair = tuple[Path, Path]  # image and mask


class LabeledImage(NamedTuple):
    image: Path
    mask: Path
    size: tuple[int, int]  # (rows, columns)


class Layout(NamedTuple):
    """Content of a folder, as the reader of its layout found it; no pixel has been read yet.

    Args:
        root: all images and masks are below it.
        name: for result.json: the data set, and how it is split.
        class_names: empty where nothing names them: then there are as many as the highest label says.
        class_of: of every label: a class from 0, IGNORED, or UNKNOWN.
        allowed_labels_text: which labels there are and what to do about others, to end a message.
        notes: what should be known of scores on it.
    """

    root: Path
    name: str
    train: list[Pair]
    val: list[Pair]
    class_names: list[str]
    class_of: Int16[np.ndarray, "256"]
    allowed_labels_text: str
    notes: tuple[str, ...] = ()


def classes_from_labels(labels: Sequence[int]) -> Int16[np.ndarray, "256"]:
    """Label labels[c] is class c; 255 is not scored, and others are unknown."""
    class_of = np.full(NUM_LABELS, UNKNOWN, np.int16)
    class_of[IGNORED] = IGNORED
    class_of[list(labels)] = np.arange(len(labels))
    return class_of


def require_parts(root: Path, parts: dict[str, str], *, data_set: str, source: str) -> None:
    """
    Args:
        parts: path below root -> what it holds.
        source: where all of them come from.

    Raises:
        UserError: some are not there.
    """
    missing = [f"{path} ({what})" for path, what in parts.items() if not (root / path).exists()]
    if missing:
        raise UserError(f"{root} looks like {data_set} but has no {', no '.join(missing)}; {source}")


def incomplete_split_notes(data_set: str, official: dict[str, int], found: dict[str, int]) -> tuple[str, ...]:
    """A note for every split that is not whole; counts are by split."""
    return tuple(
        f"{split} has {found[split]:,} of the {count:,} images of {data_set}: scores are not those of the whole set"
        for split, count in official.items()
        if found[split] < count
    )


def match_images_to_masks(images: Path, masks: Path, *, layouts: str) -> list[Pair]:
    """The images of one split with their masks, sorted by name; `layouts` ends the message where a folder is amiss."""
    image_of = files_by_stem(images, ENDINGS, layouts=layouts)
    mask_of = files_by_stem(masks, (".png",), layouts=layouts)
    if not image_of:
        raise UserError(f"{images} holds no images ({' '.join(ENDINGS)}); the layouts are:{layouts}")
    if unpaired := sorted(image_of.keys() - mask_of.keys()):
        names = listed([image_of[stem].name for stem in unpaired])
        raise UserError(
            f"{len(unpaired)} of {len(image_of)} images in {images} have no mask (same name, .png) in {masks}: "
            f"{names}; add the masks or remove the images"
        )
    if unpaired := sorted(mask_of.keys() - image_of.keys()):
        names = listed([mask_of[stem].name for stem in unpaired])
        raise UserError(
            f"{len(unpaired)} of {len(mask_of)} masks in {masks} have no image of the same name in {images}: {names}; "
            "add the images or remove the masks"
        )
    return [(image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def files_by_stem(folder: Path, endings: tuple[str, ...], *, layouts: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; the layouts are:{layouts}")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")]
    by_stem = {path.stem: path for path in paths}
    if len(by_stem) < len(paths):
        twice = listed(sorted(path.name for path in set(paths) - set(by_stem.values())))
        raise UserError(
            f"{folder} has several files of one name that differ in the ending alone: {twice}; keep one of each"
        )
    return by_stem


def spread(items: Sequence[T], max_images: int | None) -> list[T]:
    """At most so many, at even distances: neighbors in a data set are often alike."""
    count = min(len(items), max_images or len(items))
    return [items[i * len(items) // count] for i in range(count)]


def indices_to_decode(num_val: int, num_train: int) -> set[int]:
    """Of images for validation, numbered from 0, and then those for training: at most NUM_DECODED."""
    val = spread(range(num_val), NUM_DECODED)
    room = NUM_DECODED - len(val)
    return {*val, *(spread(range(num_val, num_val + num_train), room) if room else ())}


def check_pairs(
    pairs: list[Pair],
    *,
    num_val: int,
    every_mask: bool,
    report: Callable[[int, int], None],
    pixels: PixelFormat = RGB_8,
) -> tuple[list[LabeledImage], list[Bool[np.ndarray, "256"]]]:
    """Opens every image and mask once: what cannot be read or does not fit is better known now than after training.

    Args:
        num_val: the first of the pairs, which are for validation.
        every_mask: decode all masks, not only NUM_DECODED of them.

    Returns:
        The labelled images; and for each the labels that its mask has, none where it was not decoded.

    Raises:
        UserError: a file that cannot be read, or a mask that differs from its image in size.
    """
    decoded = indices_to_decode(num_val, len(pairs) - num_val)

    def check_pair(i: int) -> tuple[LabeledImage, tuple[int, ...], Bool[np.ndarray, "256"]]:
        image, mask = pairs[i]
        size = (
            read_image_or_raise(image, pixels).shape[:2] if i in decoded else read_size_or_raise(image, "image", pixels)
        )
        has_label = np.zeros(NUM_LABELS, bool)
        if every_mask or i in decoded:
            labels = read_labels(mask)
            has_label[labels] = True
            mask_size = labels.shape
        else:
            mask_size = read_size_or_raise(mask, "mask")
        return LabeledImage(image, mask, (size[0], size[1])), mask_size, has_label

    checked = []
    with ThreadPoolExecutor() as pool:
        for result in pool.map(check_pair, range(len(pairs))):
            checked.append(result)
            report(len(checked), len(pairs))
    differ = [
        f"{item.image.name} {item.size[1]} x {item.size[0]}, its mask {mask_size[1]} x {mask_size[0]}"
        for item, mask_size, _ in checked
        if item.size != mask_size
    ]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(pairs)} masks differ from their images in size (width x height): {listed(differ)}; "
            "a mask labels every pixel of the image as it is shown, after the rotation that its EXIF data ask for"
        )
    return [item for item, _, _ in checked], [has_label for _, _, has_label in checked]


def read_image_or_raise(path: Path, pixels: PixelFormat = RGB_8) -> Real[np.ndarray, "H W C"]:
    try:
        return read_image(path, pixels)
    except UnreadableImage as error:
        raise UserError(f"the image {path} cannot be read: {error}; replace it, or remove it and its mask") from error


def read_size_or_raise(path: Path, kind: str, pixels: PixelFormat = RGB_8) -> tuple[int, int]:
    """(rows, columns), from the header; `kind` is "image" or "mask"."""
    try:
        return read_size(path, pixels) if kind == "image" else stored_size(path)
    except UnreadableImage as error:
        other = "mask" if kind == "image" else "image"
        raise UserError(
            f"the {kind} {path} cannot be read: {error}; replace it, or remove it and its {other}"
        ) from error


def read_labels(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The numbers that a mask stores: gray levels of any bit depth, or the indices (not the colors) of a palette."""
    try:
        labels = read_stored_numbers(path)
    except UnreadableImage as error:
        raise UserError(f"the mask {path} cannot be read: {error}; replace it, or remove it and its image") from error
    if labels.max() > IGNORED:
        raise UserError(
            f"the mask {path} has a pixel labelled {labels.max()}; classes go up to 254, and 255 is not scored: number "
            "the classes anew"
        )
    return labels.astype(np.uint8)


def read_name_list(path: Path) -> list[str]:
    """The names of one split, one per line.

    A line may also be the paths of image and mask, of which the first counts, or a name and a number (as in VOC's
    lists of one class).

    Raises:
        UserError: no name, or one twice.
    """
    names = [name_in_line(line) for line in read_lines(path)]
    if not names:
        raise UserError(f"the list {path} is empty; it holds the names of the images of one split, one per line")
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"the list {path} has {len(twice)} names more than once: {listed(twice)}; keep one of each")
    return names


def name_in_line(line: str) -> str:
    """Without folder and ending. What follows a dot is a part of the name, if it is no ending of an image."""
    first = line.split()[0]
    if first.lower().endswith(ENDINGS):
        return Path(first).stem
    return Path(re.sub(r"\s+-?\d$", "", line)).name


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank, without blanks around them.

    Raises:
        UserError: it cannot be read, or is not in UTF-8.
    """
    try:
        # Not splitlines, which knows ends of lines that names may hold.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {error}; it holds one name per line, in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
