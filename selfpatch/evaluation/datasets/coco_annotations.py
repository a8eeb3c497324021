"""COCO's file of annotations: images, instances and categories, checked entry by entry."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from jaxtyping import Float32, UInt8

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.labeled_images import listed, read_image_or_raise

SOURCE = (
    "COCO comes from https://cocodataset.org/#download: train2017.zip and val2017.zip give the folders of images, "
    "annotations_trainval2017.zip gives annotations/"
)
# COCO rounds boxes to hundredths; farther out than this, numbers mean something else than x, y, width, height.
BEYOND_PX = 1.0
MAX_FRACTION_BEYOND = 0.01  # of the boxes of a file
LARGEST = sys.float_info.max  # of a coordinate; JSON has whole numbers beyond


class Instance(NamedTuple):
    """One annotated object, or a crowd of them."""

    label: int  # 0 to C - 1
    bbox: tuple[float, float, float, float]  # as in the file: left, top, width, height in pixels
    area: float  # pixels, as in the file: of the mask
    is_crowd: bool
    segmentation: Any  # as in the file: polygons or run lengths

    @property
    def box(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom in pixels; the last two lie just outside."""
        left, top, width, height = self.bbox
        return left, top, left + width, top + height


class CocoImage(NamedTuple):
    id: int
    path: Path
    size: tuple[int, int]  # (rows, columns)
    instances: tuple[Instance, ...]

    def masks(self, instances: Iterable[Instance] | None = None) -> UInt8[np.ndarray, "P H W"]:
        """0 or 1 for every pixel, one mask for each of these instances of the image; None: for all."""
        chosen = self.instances if instances is None else instances
        masks = [run_lengths.decode(mask_rle(instance.segmentation, self.size)) for instance in chosen]
        return np.stack(masks) if masks else np.zeros((0, *self.size), np.uint8)

    def boxes(self, instances: Iterable[Instance] | None = None) -> Float32[np.ndarray, "P 4"]:
        """left, top, right, bottom in pixels."""
        chosen = self.instances if instances is None else instances
        return np.array([instance.box for instance in chosen], np.float32).reshape(-1, 4)

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        return read_image_or_raise(self.path)


def read_coco_json(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged or no JSON: {error}; get it again. {SOURCE}") from error
    lacks = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if lacks:
        raise UserError(
            f"{file} is not in COCO's format: it has no list of {' and of '.join(lacks)}; needed are images, "
            f"annotations and categories. {SOURCE}"
        )
    return content


def read_categories(entries: list[Any], file: Path) -> tuple[list[int], list[str]]:
    """Ids and names, in the order of ids."""
    try:
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in entries)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a category in {file} has no id or no name; every category has both") from error
    if not categories:
        raise UserError(f"{file} lists no category; the classes of its annotations must be there with id and name")
    ids = [category_id for category_id, _ in categories]
    names = [name for _, name in categories]
    for what, values in (("id", ids), ("name", names)):
        (value, count), *_ = Counter(values).most_common(1)
        if count > 1:
            raise UserError(f"{count} categories in {file} have the {what} {value}; give each its own")
    return ids, names


def read_images(entries: list[Any], folder: Path, file: Path) -> dict[int, CocoImage]:
    """The images that a file lists, by id, in the order of ids, without their instances."""
    images: dict[int, CocoImage] = {}
    for place, entry in enumerate(entries):
        try:
            image_id, name, size = int(entry["id"]), str(entry["file_name"]), (entry["height"], entry["width"])
            rows, columns = map(int, size)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"image {place} (from 0) in {file} is {shortened(entry)}; an image has id, file_name, width "
                f"and height. {SOURCE}"
            ) from error
        if rows < 1 or columns < 1:
            raise UserError(f"image {name} is {columns} x {rows} pixels in {file}; correct its size there")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{file} names an image {name}, which is not in {folder}; file_name is a name in there")
        if image_id in images:
            raise UserError(
                f"the image id {image_id} comes twice in {file}, as {images[image_id].path.name} and as "
                f"{name}; give every image an id of its own"
            )
        images[image_id] = CocoImage(image_id, folder / name, (rows, columns), ())
    if not images:
        raise UserError(f"{file} lists no image, so {folder.name} is empty; {SOURCE}")
    return dict(sorted(images.items()))


def read_annotations(
    entries: list[Any], images: dict[int, CocoImage], category_ids: list[int], file: Path, *, needs_masks: bool
) -> dict[int, list[Instance]]:
    """The instances of every image, in the order of the file; labels are places in `category_ids`."""
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    instances: dict[int, list[Instance]] = {image_id: [] for image_id in images}
    beyond = []
    for place, entry in enumerate(entries):
        try:
            image_id, category_id = int(entry["image_id"]), int(entry["category_id"])
            left, top, width, height = (float(number) for number in entry["bbox"])
            area = float(entry.get("area", width * height))
            is_crowd = bool(entry.get("iscrowd", 0))
            segmentation = entry.get("segmentation")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"annotation {place} (from 0) in {file} is {shortened(entry)}; an annotation has image_id, "
                "category_id and bbox (left, top, width, height), and segmentation, area and iscrowd"
            ) from error
        named = f"annotation {entry.get('id', place)} in {file}"
        if image_id not in images:
            raise UserError(f"{named} is of an image {image_id}, which is not listed there; {SOURCE}")
        if category_id not in label_of:
            raise UserError(
                f"{named} is of a category {category_id}, which is not listed there; the categories are "
                f"{listed([str(known) for known in category_ids])}"
            )
        image = images[image_id]
        if not all(map(math.isfinite, (left, top, width, height, area))) or width < 0 or height < 0:
            raise UserError(
                f"{named} has the box {entry['bbox']}; a box is left, top, width, height in pixels, finite and not "
                "negative in size"
            )
        check_segmentation(segmentation, image.size, named, needed=needs_masks)
        instance = Instance(label_of[category_id], (left, top, width, height), area, is_crowd, segmentation)
        instances[image_id].append(instance)
        if reaches_beyond(instance, image.size):
            beyond.append(f"{entry['bbox']} in {image.path.name}, {image.size[1]} x {image.size[0]}")
    if len(beyond) > MAX_FRACTION_BEYOND * len(entries):
        raise UserError(
            f"{len(beyond)} of {len(entries)} boxes in {file} reach beyond their images: {listed(beyond)}; a "
            "box is left, top, width, height in pixels, not its right and bottom end, nor shares of the image"
        )
    return instances


def check_segmentation(segmentation: Any, size: tuple[int, int], named: str, *, needed: bool) -> None:
    """Raises UserError unless these are polygons, or run lengths of a mask of (rows, columns)."""
    if not segmentation:
        if needed:
            raise UserError(f"{named} has no segmentation, which is needed to learn and score masks; {SOURCE}")
        return
    if isinstance(segmentation, list):
        if not all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
        ):
            raise UserError(
                f"{named} has a polygon of less than three points, or of half a point; a polygon is a list x1, y1, x2, "
                "y2, ... of pixels"
            )
        if not all(isinstance(number, int | float) and abs(number) <= LARGEST for p in segmentation for number in p):
            raise UserError(f"{named} has a polygon with something that is no number; correct it")
        return
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise UserError(
            f"{named} has a segmentation that is neither a list of polygons nor run lengths (size and counts)"
        )
    if segmentation["size"] != list(size):
        raise UserError(
            f"{named} has a mask of {shortened(segmentation['size'])} (rows, columns), its image is {list(size)}; a "
            "mask is as large as its image"
        )
    try:
        run_lengths.decode(mask_rle(segmentation, size))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(f"{named} has run lengths that do not fill its image of {list(size)}: {error}") from error


def reaches_beyond(instance: Instance, size: tuple[int, int]) -> bool:
    left, top, right, bottom = instance.box
    return min(left, top) < -BEYOND_PX or right > size[1] + BEYOND_PX or bottom > size[0] + BEYOND_PX


def mask_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons, or run lengths compressed or not, as COCO's compressed run lengths."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    rle = run_lengths.frPyObjects(segmentation, *size)
    # An object behind others comes in several polygons.
    return run_lengths.merge(rle) if isinstance(rle, list) else rle


def shortened(entry: Any) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 120 else f"{text[:117]}..."
