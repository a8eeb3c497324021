"""Images of one bright rectangle on a dark ground, in Pascal VOC's layout or as images/ and annotations/*.xml."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.evaluation.labeled_scenes import ColorBackbone

BACKGROUND, OBJECT = (40, 40, 40), (240, 220, 60)


def annotation(boxes, size=(40, 56), *, difficult=0, truncated=0) -> str:
    """Of boxes left, top, right, bottom, counted from 0 and without the last pixel."""
    objects = "".join(
        f"<object><name>thing</name><truncated>{truncated}</truncated><difficult>{difficult}</difficult>"
        f"<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "</object>"
        for left, top, right, bottom in boxes
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{objects}</annotation>"


def write_voc(root: Path, *, count: int = 4, size: tuple[int, int] = (40, 56), cell: int = 8) -> Path:
    """`count` images; the rectangle lies on whole cells. Half of the images are in the list train, all in trainval."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}" for i in range(count)]
    for name in names:
        rows, columns = size[0] // cell, size[1] // cell
        top, left = rng.integers(0, rows - 1), rng.integers(0, columns - 1)
        bottom, right = rng.integers(top + 1, min(top + 3, rows)), rng.integers(left + 1, min(left + 3, columns))
        pixels = np.full((*size, 3), BACKGROUND, np.uint8)
        pixels[top * cell : bottom * cell, left * cell : right * cell] = OBJECT
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg", quality=95)
        boxes = [(left * cell, top * cell, right * cell, bottom * cell)]
        (root / f"Annotations/{name}.xml").write_text(annotation(boxes, size))
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[::2]) + "\n")
    (root / "ImageSets/Main/thing_train.txt").write_text("\n".join(f"{name}  1" for name in names) + "\n")
    return root


def write_plain(root: Path, **settings) -> Path:
    write_voc(root, **settings)
    (root / "JPEGImages").rename(root / "images")
    (root / "Annotations").rename(root / "annotations")
    return root


class ContrastBackbone(ColorBackbone):
    """Patches of one brightness are similar, keys and tokens alike."""

    stages = ()

    def last_attention_keys(self, images):
        tokens = self(images)
        return torch.where(tokens.patch_tokens > 0, 1.0, -1.0).transpose(1, 2).unflatten(2, tokens.grid_size)

    def forward_intermediates(self, images, indices):
        raise NotImplementedError
