"""Small data sets in the official layouts: images of 4 x 6 pixels, masks that have every kind of label."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (4, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def save(path: Path, array: np.ndarray, *, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)
    return path


def mask_of(*labels: int) -> np.ndarray:
    """Stripes of these labels."""
    return np.resize(np.array(labels, np.uint8), SIZE)


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_voc(root: Path, *, augmented: bool = False) -> Path:
    """VOC2012 with two images to train on and one to score; `augmented`: a third to train on, and SBD's masks."""
    train, val = ["2007_000001", "2007_000002"], ["2007_000003"]
    for name in [*train, *val]:
        save(root / f"JPEGImages/{name}.jpg", PIXELS)
        save(root / f"SegmentationClass/{name}.png", mask_of(0, 15, 20, 255), palette=True)
    save(root / "JPEGImages/2008_000009.jpg", PIXELS)  # has no mask, as most images of VOC
    write_list(root / "ImageSets/Segmentation/train.txt", train)
    write_list(root / "ImageSets/Segmentation/val.txt", val)
    if augmented:
        for name in [*train, "2008_000009"]:
            save(root / f"SegmentationClassAug/{name}.png", mask_of(0, 1))
        write_list(root / "ImageSets/Segmentation/trainaug.txt", [*train, "2008_000009"])
    return root


def write_cityscapes(root: Path, *, kinds: tuple[str, ...] = ("labelIds",)) -> Path:
    labels = {"labelIds": mask_of(0, 7, 33, 30), "labelTrainIds": mask_of(255, 0, 18, 255)}
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",))):
        for city in cities:
            name = f"{city}_000000_000019"
            save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", PIXELS)
            for kind in kinds:
                save(root / f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png", labels[kind])
            save(root / f"gtFine/{split}/{city}/{name}_gtFine_color.png", PIXELS)
    return root


def write_ade20k(root: Path) -> Path:
    """Two images a split, names of 150 classes."""
    for split in ("training", "validation"):
        for i in range(2):
            save(root / f"images/{split}/ADE_{split}_{i}.jpg", PIXELS)
            save(root / f"annotations/{split}/ADE_{split}_{i}.png", mask_of(0, 1, 150))
    rows = "".join(f"{i}\t0.1\t1\t1\tthing {i}, synonym\n" for i in range(1, 151))
    (root / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{rows}")
    (root / "sceneCategories.txt").write_text("ADE_training_0 airport\n")
    return root


def write_plain(root: Path) -> Path:
    for i in range(5):
        save(root / f"images/photo-{i}.jpg", PIXELS)
        save(root / f"masks/photo-{i}.png", mask_of(0, 1, 2, 255))
    return root
