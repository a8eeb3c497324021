"""Images in one folder per class, as ImageNet has them, checked whole at the start."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_folder import ImageFolder, left_out_notes
from selfpatch.data.reading.decode import UnreadableImage, read_image
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.identity import files_hash, val_set
from selfpatch.evaluation.datasets.images_and_masks import VAL_FRACTION, split_by_name
from selfpatch.evaluation.datasets.labeled_images import listed, spread
from selfpatch.evaluation.datasets.readable import check_readable
from selfpatch.evaluation.datasets.splits import Splits, find_splits, subfolders
from selfpatch.evaluation.task import ProgressFn, no_progress
from selfpatch.output.printable import printable

LAYOUTS = """
  train/CLASS/NAME.jpg  val/CLASS/NAME.jpg    (or Training and Validation, training_set and test_set, ...)
  CLASS/NAME.jpg                              (a part of every class is for validation)"""


def matches_layout(root: Path) -> bool:
    """True if there are folders of classes for both splits; the other layout is that of any folder of folders."""
    try:
        splits = find_splits(root, layouts=LAYOUTS)
    except UserError:
        return False
    return splits is not None and all(subfolders(split) for split in (splits.train, splits.val))


class ClassImage(NamedTuple):
    path: Path
    label: int  # 0 to C - 1


class ClassFolder:
    """The training and validation images of a folder; classes are numbered in the order of their names.

    All images below a class's folder are its own, in subfolders too. Without folders for the splits, the fifth of every
    class's images whose names have the lowest SHA-256 is for validation.

    Args:
        max_images: at most so many of each split, as many of every class, spread evenly over its names; only these
            are checked.
        report: told how many images are checked.
        pixels: the format of the images, that of the backbone.

    Raises:
        UserError: no such folders, fewer than two classes, classes that are not in both splits, a class without
            images, images that cannot be read; or max_images is less than one image per class.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_images: int | None = None,
        report: ProgressFn = no_progress,
        pixels: PixelFormat = RGB_8,
    ):
        self.root = root
        self.pixels = pixels
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; give the folder that holds the classes:{LAYOUTS}")
        splits = find_splits(root, layouts=LAYOUTS)
        left_out = LeftOut()
        if splits is None:
            # Texts in results, which are compared with those of older versions.
            self.layout = f"a folder a class, {VAL_FRACTION:.0%} of each for validation by the hash of the name"
            names = find_classes(root)
            parts = [split_by_name([(path, path) for path in left_out.images_of(root / name)]) for name in names]
            train, val = ([[path for path, _ in of_class] for of_class in part] for part in zip(*parts, strict=True))
        else:
            self.layout = f"{splits.train.name} + {splits.val.name}, a folder a class"
            names = find_classes(splits.train)
            check_same_classes(splits, names, find_classes(splits.val))
            train, val = ([left_out.images_of(split / name) for name in names] for split in splits[:2])
        self.class_names = [printable(name) for name in names]
        self.notes = left_out.notes(splits)
        self.train, self.val = (labeled(split, max_images) for split in (train, val))
        check_readable(
            root, [item.path for item in self.val + self.train], report, num_val=len(self.val), pixels=pixels
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def describe(self) -> dict[str, Any]:
        """Dataset facts, recorded in result.json."""
        return {
            "split": self.layout,
            "num_train_images": len(self.train),
            "num_val_images": len(self.val),
            "num_classes": self.num_classes,
            "notes": self.notes,
            "val_set": val_set((item.path.relative_to(self.root).as_posix() for item in self.val), self.class_names),
        }

    def training_fingerprint(self) -> dict[str, Any]:
        """Facts in which a training that goes on must agree; validation images may come and go."""
        return {
            "num_train_images": len(self.train),
            "classes": self.class_names,
            "files": files_hash(self.root, [item.path for item in self.train]),
        }

    def read_image(self, item: ClassImage) -> Real[np.ndarray, "H W C"]:
        try:
            return read_image(item.path, self.pixels)
        except UnreadableImage as error:
            raise UserError(f"the image {item.path} cannot be read: {error}; replace or remove it") from error


class LeftOut:
    """Lists the images of classes, and remembers what lies beside them."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._num_links = 0

    def images_of(self, folder: Path) -> list[Path]:
        images = ImageFolder(folder)
        self._files += images.left_out
        self._num_links += images.num_links
        return [images.path(i) for i in range(len(images))]

    def notes(self, splits: Splits | None) -> list[str]:
        unused = [f"{path.name}/ is not used: {splits.val.name}/ is there" for path in splits.unused] if splits else []
        return [*unused, *left_out_notes(self._files, self._num_links)]


def find_classes(folder: Path) -> list[str]:
    names = [path.name for path in subfolders(folder)]
    if len(names) < 2:
        found = f"one class alone, {names[0]}" if names else "no folders"
        raise UserError(f"{folder} holds {found}; at least two classes are needed, one folder per class:{LAYOUTS}")
    return names


def check_same_classes(splits: Splits, of_train: list[str], of_val: list[str]) -> None:
    for split, there, other in ((splits.train, of_train, of_val), (splits.val, of_val, of_train)):
        if missing := sorted(set(other) - set(there)):
            raise UserError(
                f"{split} lacks {len(missing)} of the classes that the other split has: {listed(missing)}; the same "
                f"classes must be in {splits.train.name}/ and {splits.val.name}/: add images of them, or remove their "
                "folders"
            )


def labeled(paths_of_classes: list[list[Path]], max_images: int | None) -> list[ClassImage]:
    num_classes = len(paths_of_classes)
    if max_images is not None and max_images < num_classes:
        raise UserError(
            f"max-images is {max_images}, less than one image for each of {num_classes} classes; make it larger"
        )
    per_class = None if max_images is None else max_images // num_classes
    return [
        ClassImage(path, label) for label, paths in enumerate(paths_of_classes) for path in spread(paths, per_class)
    ]
