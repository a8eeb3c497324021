"""Made-up images in COCO's layout: bright rectangles and ellipses, with every kind of segmentation there is."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as oracle_mask

# Ids with gaps, as COCO's own; not in order.
CATEGORIES = {7: "box", 3: "disk", 44: "bar"}
COLORS = {7: (220, 40, 40), 3: (40, 200, 60), 44: (60, 80, 230)}


def uncompressed(mask: np.ndarray) -> dict:
    """Column by column, zeros first."""
    flat = mask.T.reshape(-1)
    counts, value = [], 0
    start = 0
    for i in range(len(flat) + 1):
        if i == len(flat) or flat[i] != value:
            counts.append(i - start)
            start, value = i, 1 - value
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict:
    rle = oracle_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def draw_instance(rng: np.random.Generator, size: tuple[int, int], category: int) -> tuple[np.ndarray, list | None]:
    """A mask, and its polygon where it is a rectangle."""
    rows, columns = size
    height, width = (int(rng.integers(side // 3, side // 2 + 1)) for side in size)
    if category == 44:
        height = max(6, height // 3)
    top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
    mask = np.zeros(size, np.uint8)
    if category == 3:
        y, x = np.mgrid[:rows, :columns] + 0.5
        inside = ((y - top - height / 2) / (height / 2)) ** 2 + ((x - left - width / 2) / (width / 2)) ** 2 < 1
        mask[inside] = 1
        return mask, None
    mask[top : top + height, left : left + width] = 1
    right, bottom = left + width, top + height
    return mask, [left, top, right, top, right, bottom, left, bottom]


def box_of(mask: np.ndarray) -> list[float]:
    """left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


def write_coco(
    root: Path,
    *,
    num_train: int = 4,
    num_val: int = 3,
    size: tuple[int, int] = (48, 64),
    per_image: tuple[int, int] = (1, 3),
    seed: int = 0,
) -> Path:
    """The first validation image also has a crowd, and one more of each split has nothing on it."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", num_train), ("val", num_val)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for i in range(count + 1):
            image_id, name = 10 * i + 5, f"{i:06d}.png"
            pixels = rng.integers(90, 130, (*size, 3), np.uint8)
            for _ in range(0 if i == count else int(rng.integers(*per_image, endpoint=True))):
                category = int(rng.choice(list(CATEGORIES)))
                mask, polygon = draw_instance(rng, size, category)
                pixels[mask == 1] = COLORS[category]
                for other in annotations:  # what is behind is seen in part only
                    if other["image_id"] == image_id:
                        other["mask"] = other["mask"] * (1 - mask)
                annotations.append({"image_id": image_id, "category_id": category, "mask": mask, "iscrowd": 0})
                annotations[-1] |= {"polygon": polygon}
            if split == "val" and i == 0:
                crowd = np.zeros(size, np.uint8)
                crowd[-12:, -20:] = 1
                annotations.append(
                    {"image_id": image_id, "category_id": 7, "mask": crowd, "iscrowd": 1, "polygon": None}
                )
            Image.fromarray(pixels).save(root / f"{split}2017" / name)
            images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        entries = []
        for number, annotation in enumerate(annotations, start=1):
            mask, polygon = annotation.pop("mask"), annotation.pop("polygon")
            if mask.sum() < 16:
                continue
            whole = polygon is not None and mask.sum() == (polygon[2] - polygon[0]) * (polygon[5] - polygon[1])
            segmentation = [polygon] if whole else (uncompressed if number % 2 else compressed)(mask)
            entries.append(
                annotation
                | {"id": number, "bbox": box_of(mask), "area": float(mask.sum()), "segmentation": segmentation}
            )
        content = {
            "images": images,
            "annotations": entries,
            "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root
