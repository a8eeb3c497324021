"""Images with one label a pixel, in ADE20K's layout or as images/ and masks/, checked whole at the start."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from selfpatch.data.decode import UnreadableImage, read_image
from selfpatch.data.image_folder import ENDINGS
from selfpatch.evaluation.metrics import IGNORED

VAL_SHARE = 0.2  # of the images, where the folder does not say what is for validation

LAYOUTS = """
  images/{training,validation}/NAME.jpg  annotations/{training,validation}/NAME.png  (ADE20K: 1, 2, ...; 0 = not scored)
  images/NAME.jpg                        masks/NAME.png                              (0, 1, 2, ...; 255 = not scored)"""


T = TypeVar("T")
Pair = tuple[Path, Path]  # image and mask


class LabelledImage(NamedTuple):
    image: Path
    mask: Path
    size: tuple[int, int]  # (rows, columns)


class SegmentationFolder:
    """The training and validation images of a folder, with their masks.

    Below annotations/ label 0 means "other" and is not scored, and label k is class k - 1; below masks/ labels are
    classes. 255 is never scored. Names of classes come from classes.txt (one a line) or ADE20K's objectInfo150.txt;
    without these there are as many classes as the highest label says. Where images/ has no training/ and validation/,
    the fifth of the images whose names have the lowest SHA-256 is for validation.

    Args:
        max_images: at most so many of each split, spread evenly over its names; only these are checked.

    Raises:
        ValueError: the folder is not complete and consistent; the message names files.
    """

    def __init__(self, root: Path, *, max_images: int | None = None):
        self.root = root
        images, masks = find_folders(root)
        self.zero_is_ignored = masks.name == "annotations"
        if (images / "training").is_dir() or (images / "validation").is_dir():
            self.layout = f"images + {masks.name}, split by folder"
            train, val = (pair_up(images / split, masks / split) for split in ("training", "validation"))
        else:
            self.layout = f"images + {masks.name}, {VAL_SHARE:.0%} for validation by the hash of the name"
            train, val = split_by_name(pair_up(images, masks))
        train, val = spread(train, max_images), spread(val, max_images)
        items, highest_labels = check_pairs(train + val)
        self.train, self.val = items[: len(train)], items[len(train) :]
        self.class_names = self._class_names(items, highest_labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def facts(self) -> dict[str, Any]:
        """What a protocol met here, for result.json."""
        return {
            "split": self.layout,
            "num_train_images": len(self.train),
            "num_val_images": len(self.val),
            "num_classes": self.num_classes,
        }

    def read_image(self, item: LabelledImage) -> UInt8[np.ndarray, "H W 3"]:
        return read_named(item.image)

    def read_mask(self, item: LabelledImage) -> UInt8[np.ndarray, "H W"]:
        """Classes 0 to C - 1, or IGNORED."""
        labels = read_labels(item.mask).astype(np.uint8)
        if not self.zero_is_ignored:
            return labels
        return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(np.uint8)

    def _class_names(self, items: list[LabelledImage], highest_labels: list[int]) -> list[str]:
        first = int(self.zero_is_ignored)
        label = max(highest_labels)
        path = items[highest_labels.index(label)].mask
        names, source = read_class_names(self.root)
        if not names:
            names = [str(label) for label in range(first, label + 1)]
        elif label >= first + len(names):
            raise ValueError(
                f"{path} has a pixel labelled {label}, but {source} names {len(names)} classes, so that labels go from "
                f"0 to {first + len(names) - 1} (255 = not scored); correct the mask or complete {source.name}"
            )
        if len(names) < 2:
            raise ValueError(
                f"the masks in {self.root} know fewer than two classes: apart from pixels that are not scored, the "
                f"highest label is {label}; labels are class numbers, not grey levels: write {first}, {first + 1}, ... "
                "into the masks"
            )
        return names


def find_folders(root: Path) -> tuple[Path, Path]:
    """The folder of images and the folder of masks."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; give the folder that holds the labelled images:{LAYOUTS}")
    for name in ("annotations", "masks"):
        if (root / "images").is_dir() and (root / name).is_dir():
            return root / "images", root / name
    found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise ValueError(f"{root} holds {found}; labelled images are expected in one of these layouts:{LAYOUTS}")


def pair_up(images: Path, masks: Path) -> list[Pair]:
    """The images of one split with their masks, sorted by name."""
    image_of, mask_of = files_by_stem(images, ENDINGS), files_by_stem(masks, (".png",))
    if not image_of:
        raise ValueError(f"{images} holds no images ({' '.join(ENDINGS)}); the layouts are:{LAYOUTS}")
    if lonely := sorted(image_of.keys() - mask_of.keys()):
        names = listed([image_of[stem].name for stem in lonely])
        raise ValueError(
            f"{len(lonely)} of {len(image_of)} images in {images} have no mask (same name, .png) in {masks}: {names}; "
            "add the masks or remove the images"
        )
    if lonely := sorted(mask_of.keys() - image_of.keys()):
        names = listed([mask_of[stem].name for stem in lonely])
        raise ValueError(
            f"{len(lonely)} of {len(mask_of)} masks in {masks} have no image of the same name in {images}: {names}; "
            "add the images or remove the masks"
        )
    return [(image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def files_by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; the layouts are:{LAYOUTS}")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")]
    by_stem = {path.stem: path for path in paths}
    if len(by_stem) < len(paths):
        twice = listed(sorted(path.name for path in set(paths) - set(by_stem.values())))
        raise ValueError(
            f"{folder} has several files of one name that differ in the ending alone: {twice}; keep one of each"
        )
    return by_stem


def split_by_name(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training and validation; an image's side hardly depends on which others there are."""
    if len(pairs) < 2:
        raise ValueError(
            f"{pairs[0][0].parent} holds one image; at least two are needed, to learn from one and score the other"
        )
    by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].stem.encode()).digest())
    num_val = max(1, round(VAL_SHARE * len(pairs)))
    return sorted(by_hash[num_val:]), sorted(by_hash[:num_val])


def spread(items: Sequence[T], max_images: int | None) -> list[T]:
    """At most so many, at even distances: neighbours in a data set are often alike."""
    count = min(len(items), max_images or len(items))
    return [items[i * len(items) // count] for i in range(count)]


def check_pairs(pairs: list[Pair]) -> tuple[list[LabelledImage], list[int]]:
    """Reads every image and mask once: what cannot be read or does not fit is better known now than after training.

    Returns the labelled images, and the highest label of each mask, 255 left out.
    """

    def check_pair(pair: Pair) -> tuple[LabelledImage, tuple[int, int], int]:
        image, mask = pair
        rows, columns, _ = read_named(image).shape
        labels = read_labels(mask)
        highest = labels.max(initial=0, where=labels != IGNORED)
        return LabelledImage(image, mask, (rows, columns)), labels.shape, int(highest)

    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(check_pair, pairs))
    differ = [
        f"{item.image.name} {item.size[1]} x {item.size[0]}, its mask {mask_size[1]} x {mask_size[0]}"
        for item, mask_size, _ in checked
        if item.size != mask_size
    ]
    if differ:
        raise ValueError(
            f"{len(differ)} of {len(pairs)} masks differ from their images in size (width x height): {listed(differ)}; "
            "a mask labels every pixel of the image as it is shown, after the rotation that its EXIF data ask for"
        )
    return [item for item, _, _ in checked], [highest for _, _, highest in checked]


def read_named(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise ValueError(f"the image {path} cannot be read: {error}; replace it, or remove it and its mask") from error


def read_labels(path: Path) -> Integer[np.ndarray, "H W"]:
    """The numbers in a mask: grey levels of 8 or 16 bit, or the indices (not the colours) of a palette."""
    try:
        with Image.open(path) as mask:
            mode, labels = mask.mode, np.asarray(mask)
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG
        raise ValueError(f"the mask {path} cannot be read: {error}; replace it, or remove it and its image") from error
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(
            f"the mask {path} is a colour picture ({mode}); masks hold a class number a pixel: save them as 8-bit "
            "grey, 16-bit grey or palette PNG"
        )
    labels = labels.astype(np.int32)
    if labels.max() > IGNORED:
        raise ValueError(
            f"the mask {path} has a pixel labelled {labels.max()}; classes go up to 254, and 255 is not scored: number "
            "the classes anew"
        )
    return labels


def read_class_names(root: Path) -> tuple[list[str], Path]:
    """Names in the order of their labels and the file they are from; none where there is no such file."""
    path = root / "classes.txt"
    if path.is_file():
        return distinct([line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]), path
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return [], path
    rows = [line.strip().split("\t") for line in path.read_text("utf-8-sig").splitlines()[1:] if line.strip()]
    # ADE20K gives synonyms ("building, edifice"); the first is enough to know it by.
    return distinct([row[-1].split(",")[0].strip() for row in rows]), path


def distinct(names: list[str]) -> list[str]:
    """Scores are listed by name, so classes of one name get numbers."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
