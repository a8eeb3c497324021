"""Images with one label per pixel, in whichever layout a folder has; checked before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Real, UInt8

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets import ade20k, cityscapes, images_and_masks, voc
from selfpatch.evaluation.datasets.identity import files_hash, val_set
from selfpatch.evaluation.datasets.images_and_masks import numbered_classes
from selfpatch.evaluation.datasets.labeled_images import (
    UNKNOWN,
    LabeledImage,
    Layout,
    check_pairs,
    read_image_or_raise,
    read_labels,
    spread,
)
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.task import ProgressFn, no_progress

# Those with the most telling names first.
READERS = (voc, cityscapes, ade20k, images_and_masks)
LAYOUTS = "".join(f"\n  {reader.LAYOUT}" for reader in READERS)


class SegmentationData:
    """The training and validation images of a data set, and how their masks are read.

    Args:
        layout: its `class_names` are known by now.
        pixels: the format in which images are read: that of the backbone.
    """

    def __init__(
        self, train: list[LabeledImage], val: list[LabeledImage], layout: Layout, *, pixels: PixelFormat = RGB_8
    ):
        self.train, self.val = train, val
        self.pixels = pixels
        self.layout = layout.name
        self.class_names = layout.class_names
        self.notes = layout.notes
        self._layout = layout

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def leaves_out_label_0(self) -> bool:
        """True if label 0 is not scored and label 1 is the first class, as in ADE20K."""
        return bool(self._layout.class_of[0] == IGNORED and self._layout.class_of[1] == 0)

    def describe(self) -> dict[str, Any]:
        """Dataset facts, recorded in result.json."""
        return {
            "split": self.layout,
            "num_train_images": len(self.train),
            "num_val_images": len(self.val),
            "num_classes": self.num_classes,
            "val_set": val_set(
                (item.image.relative_to(self._layout.root).as_posix() for item in self.val), self.class_names
            ),
            "notes": list(self.notes),
        }

    def training_fingerprint(self) -> dict[str, Any]:
        """Facts in which a training that goes on must agree; validation images may come and go."""
        files = (path for item in self.train for path in (item.image, item.mask))
        return {
            "num_train_images": len(self.train),
            "classes": self.class_names,
            "files": files_hash(self._layout.root, files),
        }

    def read_image(self, item: LabeledImage) -> Real[np.ndarray, "H W C"]:
        return read_image_or_raise(item.image, self.pixels)

    def read_mask(self, item: LabeledImage) -> UInt8[np.ndarray, "H W"]:
        """Classes 0 to C - 1, or IGNORED.

        Raises:
            UserError: a label that the data set does not have; of large sets not every mask was checked before.
        """
        labels = read_labels(item.mask)
        classes = self._layout.class_of[labels]
        if (classes == UNKNOWN).any():
            raise UserError(unknown_label(item, int(labels[classes == UNKNOWN].max()), self._layout))
        return classes.astype(np.uint8)


def read_segmentation(
    root: Path,
    *,
    max_images: int | None = None,
    report: ProgressFn = no_progress,
    pixels: PixelFormat = RGB_8,
) -> SegmentationData:
    """Reads a folder that holds ADE20K, Pascal VOC 2012, Cityscapes, or images/ and masks/.

    Args:
        max_images: at most so many of each split, spread evenly over it; only these are checked.
        report: told how many images are checked.
        pixels: the format of the images, that of the backbone.

    Raises:
        UserError: the folder is not complete and consistent; the message names files.
    """
    # 1. Which layout it is, and its images and masks by name.
    layout = find_layout(root)
    train, val = spread(layout.train, max_images), spread(layout.val, max_images)

    # 2. Their sizes and labels.
    items, has_label = check_pairs(
        val + train, num_val=len(val), every_mask=not layout.class_names, report=report, pixels=pixels
    )
    for item, own in zip(items, has_label, strict=True):
        if len(unknown := np.flatnonzero(own & (layout.class_of == UNKNOWN))):
            raise UserError(unknown_label(item, int(unknown.max()), layout))

    # 3. As many classes as there are names, or labels.
    if not layout.class_names:
        layout = count_classes(layout, [int(np.flatnonzero(own[:IGNORED]).max(initial=0)) for own in has_label])
    if len(layout.class_names) < 2:
        last = int(np.flatnonzero((layout.class_of >= 0) & (layout.class_of != IGNORED)).max(initial=0))
        first = int(layout.class_of[0] == IGNORED)
        raise UserError(
            f"the masks in {root} know fewer than two classes: apart from pixels that are not scored, the highest "
            f"label is {last}; labels are class numbers, not gray levels: write {first}, {first + 1}, ... into the "
            "masks"
        )
    return SegmentationData(items[len(val) :], items[: len(val)], layout, pixels=pixels)


def matches_layout(root: Path) -> bool:
    """True if a folder looks like labeled images, complete or not."""
    return any(reader.find(root) is not None for reader in READERS)


def find_layout(root: Path) -> Layout:
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the folder that holds the labelled images:{LAYOUTS}")
    for reader in READERS:
        if (folder := reader.find(root)) is not None:
            return reader.read(folder, layouts=LAYOUTS)
    found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise UserError(f"{root} holds {found}; labelled images are expected in one of these layouts:{LAYOUTS}")


def count_classes(layout: Layout, highest_labels: list[int]) -> Layout:
    """Classes named by their labels, up to the highest one."""
    first = int(layout.class_of[0] == IGNORED)
    last = max(highest_labels)
    names = [str(label) for label in range(first, last + 1)]
    return layout._replace(class_names=names, class_of=numbered_classes(first, last))


def unknown_label(item: LabeledImage, label: int, layout: Layout) -> str:
    return f"{item.mask} has a pixel labelled {label}, but {layout.allowed_labels_text}"
