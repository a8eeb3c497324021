"""Cityscapes: the 19 classes that its benchmark scores, from label ids or from train ids."""

from pathlib import Path

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import (
    UNKNOWN,
    Layout,
    Pair,
    classes_from_labels,
    incomplete_split_notes,
    listed,
    require_parts,
)
from selfpatch.evaluation.metrics import IGNORED

LAYOUT = (
    "leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png  gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png  "
    "(Cityscapes; or ..._labelTrainIds.png)"
)
OFFICIAL = {"train": 2975, "val": 500}
# Train id -> label id and name; the other label ids, 0 to 33, are not scored.
SCORED = [
    (7, "road"), (8, "sidewalk"), (11, "building"), (12, "wall"), (13, "fence"), (17, "pole"), (19, "traffic light"),
    (20, "traffic sign"), (21, "vegetation"), (22, "terrain"), (23, "sky"), (24, "person"), (25, "rider"), (26, "car"),
    (27, "truck"), (28, "bus"), (31, "train"), (32, "motorcycle"), (33, "bicycle"),
]  # fmt: skip
NUM_LABEL_IDS = 34
CLASS_OF_LABEL_ID = classes_from_labels([label for label, _ in SCORED])
CLASS_OF_LABEL_ID[:NUM_LABEL_IDS][CLASS_OF_LABEL_ID[:NUM_LABEL_IDS] == UNKNOWN] = IGNORED
IMAGE_END, MASK_ENDS = "_leftImg8bit.png", ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png")
SOURCE = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip are on the download page of 'The Cityscapes Dataset'"


def find(root: Path) -> Path | None:
    for folder in (root / "cityscapes", root):
        if (folder / "leftImg8bit").is_dir() or (folder / "gtFine").is_dir():
            return folder
    return None


def read(root: Path, *, layouts: str) -> Layout:
    """Label ids where both kinds of masks are there: they come with the data, and train ids are made by a script.

    Source: mcordts/cityscapesScripts, helpers/labels.py.
    """
    parts = {
        f"{kind}/{split}": f"the {split} {what}"
        for split in OFFICIAL
        for kind, what in (("leftImg8bit", "images"), ("gtFine", "masks"))
    }
    require_parts(root, parts, data_set="Cityscapes", source=SOURCE)
    mask_end = next((end for end in MASK_ENDS if files_of_cities(root / "gtFine" / "train", end)), None)
    if mask_end is None:
        raise UserError(
            f"{root / 'gtFine' / 'train'} has no CITY/NAME{MASK_ENDS[0]} and no CITY/NAME{MASK_ENDS[1]}; {SOURCE}"
        )
    train, val = (city_pairs(root, split, mask_end) for split in OFFICIAL)
    by_label_id = mask_end == MASK_ENDS[0]
    allowed_labels_text = "Cityscapes has " + (
        f"label ids 0 to {NUM_LABEL_IDS - 1}, and 255" if by_label_id else "train ids 0 to 18, and 255 (not scored)"
    )
    return Layout(
        root,
        "Cityscapes, train + val",
        train,
        val,
        [name for _, name in SCORED],
        CLASS_OF_LABEL_ID if by_label_id else classes_from_labels(range(len(SCORED))),
        f"{allowed_labels_text}; take the masks as they come",
        incomplete_split_notes("Cityscapes", OFFICIAL, {"train": len(train), "val": len(val)}),
    )


def city_pairs(root: Path, split: str, mask_end: str) -> list[Pair]:
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    image_of, mask_of = (files_of_cities(images, IMAGE_END), files_of_cities(masks, mask_end))
    if not image_of:
        raise UserError(f"{images} has no CITY/NAME{IMAGE_END}; {SOURCE}")
    if unpaired := sorted(image_of.keys() - mask_of.keys()):
        raise UserError(
            f"{len(unpaired)} of {len(image_of)} images in {images} have no mask (NAME{mask_end}) in {masks}: "
            f"{listed(unpaired)}; {SOURCE}"
        )
    if unpaired := sorted(mask_of.keys() - image_of.keys()):
        raise UserError(
            f"{len(unpaired)} of {len(mask_of)} masks in {masks} have no image (NAME{IMAGE_END}) in {images}: "
            f"{listed(unpaired)}; {SOURCE}"
        )
    return [(image_of[name], mask_of[name]) for name in sorted(image_of)]


def files_of_cities(folder: Path, end: str) -> dict[str, Path]:
    """CITY/NAME -> folder/CITY/NAME + end, without hidden files, such as those that macOS leaves beside others."""
    paths = (path.relative_to(folder) for path in folder.glob(f"*/*{end}"))
    return {
        str(path).removesuffix(end): folder / path
        for path in paths
        if not any(part.startswith(".") for part in path.parts)
    }
