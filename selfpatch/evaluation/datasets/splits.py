"""Folders of training and validation images, under any of the names that data sets give them."""

import re
from pathlib import Path
from typing import NamedTuple

from selfpatch.data.image_folder import SYSTEM_FOLDERS
from selfpatch.errors import UserError

_KIND_OF_WORD = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "eval": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_WORD = re.compile(rf"({'|'.join(sorted(_KIND_OF_WORD, key=len, reverse=True))})(?:set|data|images)?\d*")
# Words that say nothing of what the folder holds.
_FILLERS = {"set", "data", "dataset", "images", "imgs", "img", "split"}


class Splits(NamedTuple):
    train: Path
    val: Path
    unused: tuple[Path, ...] = ()  # test images, where validation images are there too


def find_splits(root: Path, *, layouts: str) -> Splits | None:
    """Folders such as train and val, Training and Validation, training_set and test_set, seg_train and seg_test.

    Validation images are those of a folder called so, else those of test; None where no folder has such a name. One
    name alone is a split if it is nothing but that ("train"): "train_station" is a class.

    Raises:
        UserError: training images without others, or others without them; or two folders for one split.
    """
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for folder in subfolders(root):
        if (found := _split_of(folder.name)) is not None:
            kind, rest = found
            groups.setdefault(rest, {}).setdefault(kind, []).append(folder)
    # Folders called nothing else first.
    for rest, folders in sorted(groups.items(), key=lambda group: len(group[0])):
        is_pair = "train" in folders and len(folders) > 1
        if not is_pair and rest:
            continue
        if twice := next((same for same in folders.values() if len(same) > 1), None):
            raise UserError(
                f"{root} holds {' and '.join(f'{path.name}/' for path in twice)}, two folders for one split; keep one. "
                f"The layouts are:{layouts}"
            )
        if not is_pair:
            there = next(iter(folders.values()))[0].name
            missing = "val" if "train" in folders else "train"
            raise UserError(
                f"{root} holds {there}/ but no {missing}/; add it, or leave both out (nothing else can be called "
                f"{there}). The layouts are:{layouts}"
            )
        train, *others = (folders[kind][0] for kind in ("train", "val", "test") if kind in folders)
        return Splits(train, others[0], tuple(others[1:]))
    return None


def subfolders(root: Path) -> list[Path]:
    """By name; links to folders too, but not what is hidden or what operating systems put there."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in SYSTEM_FOLDERS
    )


def _split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a name stands for, and the rest of its words; None for other names."""
    words = re.split(r"[\W_]+", name.lower())
    for i, word in enumerate(words):
        if match := _WORD.fullmatch(word):
            rest = (*words[:i], *words[i + 1 :])
            return _KIND_OF_WORD[match[1]], tuple(part for part in rest if part and part not in _FILLERS)
    return None
