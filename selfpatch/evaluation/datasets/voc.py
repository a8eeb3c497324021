"""Pascal VOC: 20 classes and the background, 255 for borders and what is hard to tell; SBD's masks if there."""

import re
from pathlib import Path

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import (
    Layout,
    Pair,
    classes_from_labels,
    incomplete_split_notes,
    listed,
    read_name_list,
    require_parts,
)

LAYOUT = (
    "[VOCdevkit/]VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}  (Pascal VOC 2012; with "
    "SegmentationClassAug and trainaug.txt also SBD's masks)"
)
VOC2012 = "Pascal VOC 2012"
OFFICIAL = {"train": 1464, "trainaug": 10_582, "val": 1449}  # of that year
CLASS_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
LISTS = Path("ImageSets", "Segmentation")
# trainaug is written both ways.
AUGMENTED_LISTS = ("trainaug.txt", "train_aug.txt")
SOURCE = (
    "it comes with VOCtrainval_11-May-2012.tar of the page 'Visual Object Classes Challenge 2012 (VOC2012)', and of "
    "other years with theirs"
)


def find(root: Path) -> Path | None:
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        # Not by JPEGImages, which detection alone and DAVIS have too.
        if any((folder / part).is_dir() for part in ("SegmentationClass", LISTS)):
            return folder
    return None


def read(root: Path, *, layouts: str) -> Layout:
    """Trains on trainaug, the list with SBD's masks, where the folder has both; else on train.

    Source: the devkit's documentation; Hariharan et al., Semantic Contours from Inverse Detectors (ICCV 2011).
    """
    data_set = year_of(root)
    parts = {
        "JPEGImages": "the images",
        "SegmentationClass": "the masks",
        str(LISTS / "train.txt"): "the names of the training images",
        str(LISTS / "val.txt"): "the names of the validation images",
    }
    augmented = next((root / LISTS / name for name in AUGMENTED_LISTS if (root / LISTS / name).is_file()), None)
    has_augmented = augmented is not None and (root / "SegmentationClassAug").is_dir()
    if has_augmented:
        parts.pop(str(LISTS / "train.txt"))
    require_parts(root, parts, data_set=data_set, source=SOURCE)

    # 1. The lists.
    split = "trainaug" if has_augmented else "train"
    train_list = augmented if augmented is not None and has_augmented else root / LISTS / "train.txt"
    train = listed_pairs(root, train_list, "SegmentationClassAug" if has_augmented else "SegmentationClass")
    val = listed_pairs(root, root / LISTS / "val.txt", "SegmentationClass")
    if both := sorted({image.stem for image, _ in train} & {image.stem for image, _ in val}):
        raise UserError(
            f"{len(both)} images of {root} are in {train_list.name} and in val.txt: {listed(both)}; a score on "
            "what was trained on says nothing: remove them from one list"
        )

    # 2. What is not as it could be.
    notes = ()
    if data_set == VOC2012:
        official = {name: OFFICIAL[name] for name in (split, "val")}
        notes = incomplete_split_notes(data_set, official, {split: len(train), "val": len(val)})
    if augmented is not None and not has_augmented:
        notes += (f"train is used: {augmented.name} is there, but SBD's masks (SegmentationClassAug) are not",)
    allowed_labels_text = "Pascal VOC has 0 (background) to 20, and 255 (not scored); take the masks as they come"
    return Layout(
        root,
        f"{data_set}, {split} + val",
        train,
        val,
        CLASS_NAMES,
        classes_from_labels(range(21)),
        allowed_labels_text,
        notes,
    )


def year_of(root: Path) -> str:
    """The data set by the name of its folder: other years and own data are laid out alike."""
    year = re.fullmatch(r"VOC(20\d\d)", root.resolve().name)
    return f"Pascal VOC {year[1]}" if year else "Pascal VOC layout"


def listed_pairs(root: Path, names_file: Path, masks: str) -> list[Pair]:
    names = read_name_list(names_file)
    for folder, ending in (("JPEGImages", ".jpg"), (masks, ".png")):
        there = {path.name for path in (root / folder).iterdir()}
        if missing := [name + ending for name in names if name + ending not in there]:
            raise UserError(
                f"{len(missing)} of {len(names)} names in {names_file} are not in {root / folder}: {listed(missing)}; "
                "unpack the archive again, or remove them from the list"
            )
    return [(root / "JPEGImages" / f"{name}.jpg", root / masks / f"{name}.png") for name in names]
