"""The plain layout: images/ and masks/, with or without folders for the splits."""

import hashlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import (
    NUM_LABELS,
    UNKNOWN,
    Layout,
    Pair,
    match_images_to_masks,
    read_lines,
)
from selfpatch.evaluation.datasets.splits import find_splits
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.output.printable import printable

VAL_FRACTION = 0.2  # of the images, where the folder does not say what is for validation

LAYOUT = "images/NAME.jpg  masks/NAME.png  (0, 1, 2, ...; 255 = not scored); or images/training/NAME.jpg ..."


def find(root: Path) -> Path | None:
    return root if (root / "images").is_dir() and (root / "masks").is_dir() else None


def read(root: Path, *, layouts: str) -> Layout:
    """Labels are classes, 255 is not scored, and classes.txt names them, one per line."""
    return read_folders(root, root / "masks", first_label=0, layouts=layouts)


def read_folders(root: Path, masks: Path, *, first_label: int, layouts: str) -> Layout:
    """Images below images/ and their masks; a label below `first_label` is not scored.

    Where images/ has no folders such as training/ and validation/, the fifth of the images whose names have the lowest
    SHA-256 is for validation.
    """
    images = root / "images"
    splits = find_splits(images, layouts=layouts)
    if splits is not None:
        name = f"images + {masks.name}, split by folder"
        train, val = (match_images_to_masks(split, masks / split.name, layouts=layouts) for split in splits[:2])
    else:
        name = f"images + {masks.name}, {VAL_FRACTION:.0%} for validation by the hash of the name"
        train, val = split_by_name(match_images_to_masks(images, masks, layouts=layouts))
    class_names, source = read_class_names(root)
    last = first_label + len(class_names) - 1 if class_names else IGNORED - 1
    allowed_labels_text = (
        f"{source} names {len(class_names)} classes, so that labels go from 0 to {last} (255 = not scored); correct "
        f"the mask or complete {source.name}"
    )
    return Layout(root, name, train, val, class_names, numbered_classes(first_label, last), allowed_labels_text)


def numbered_classes(first: int, last: int) -> Int16[np.ndarray, "256"]:
    """Labels `first` to `last` are classes; those below, and 255, are not scored; those above are unknown."""
    class_of = np.arange(NUM_LABELS, dtype=np.int16) - first
    class_of[:first] = class_of[IGNORED] = IGNORED
    class_of[last + 1 : IGNORED] = UNKNOWN
    return class_of


def split_by_name(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training and validation; an image's side hardly depends on which others there are."""
    if len(pairs) < 2:
        raise UserError(
            f"{pairs[0][0].parent} holds one image; at least two are needed, to learn from one and score the other"
        )
    by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(os.fsencode(pair[0].stem)).digest())
    num_val = max(1, round(VAL_FRACTION * len(pairs)))
    return sorted(by_hash[num_val:]), sorted(by_hash[:num_val])


def read_class_names(root: Path) -> tuple[list[str], Path]:
    """Names in the order of their labels and the file they are from; none where there is no such file."""
    path = root / "classes.txt"
    if path.is_file():
        return distinct(read_lines(path)), path
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return [], path
    rows = [line.split("\t") for line in read_lines(path)[1:]]
    # ADE20K gives synonyms ("building, edifice"); the first is enough to know it by.
    return distinct([row[-1].split(",")[0].strip() for row in rows]), path


def distinct(names: list[str]) -> list[str]:
    """Scores are listed by name, so classes of one name get numbers."""
    names = [printable(name, keep="\\") for name in names]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]
