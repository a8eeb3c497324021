"""COCO: images with boxes and masks of objects, as its website gives them, checked at the start.

ROOT/train2017/000000000009.jpg ...   ROOT/annotations/instances_train2017.json
ROOT/val2017/000000000139.jpg ...     ROOT/annotations/instances_val2017.json
"""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from jaxtyping import Float32, UInt8

from selfpatch.data.reading.decode import UnreadableImage, read_size
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.identity import files_hash, val_set
from selfpatch.evaluation.datasets.labeled_images import listed, read_image_or_raise, spread

TRAIN, VAL = "train2017", "val2017"
SOURCE = (
    "COCO comes from https://cocodataset.org/#download: train2017.zip and val2017.zip give the folders of images, "
    "annotations_trainval2017.zip gives annotations/"
)
# COCO rounds boxes to hundredths; farther out than this, numbers mean something else than x, y, width, height.
BEYOND_PX = 1.0
MAX_SHARE_BEYOND = 0.01  # of the boxes of a file
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


class CocoSplit:
    """One split: every image that its file lists, with or without instances, in the order of their ids.

    Args:
        name: of the folder of images, and of the file annotations/instances_NAME.json.
        needs_masks: refuse instances without a segmentation.
        max_images: keep at most so many, spread evenly; only these are looked for.
        keep: which images are wanted at all, before max_images counts.

    Attributes:
        num_left_out: images that were not wanted.
        category_ids: the id in the file of each label; `label_of` is the way back. Ids may have gaps, labels have none.
        class_names: the name of each label.

    Raises:
        UserError: folder, file or images are missing, or the file is not consistent; the message names what and where.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        needs_masks: bool = True,
        max_images: int | None = None,
        keep: Callable[[CocoImage], bool] | None = None,
    ):
        self.name = name
        self.folder, self.file = find_split(root, name)
        content = read_coco_json(self.file)
        self.category_ids, self.class_names = read_categories(content["categories"], self.file)
        self.label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        images = self._read_images(content["images"])
        instances = self._read_annotations(content["annotations"], images, needs_masks=needs_masks)
        complete = [image._replace(instances=tuple(instances[image.id])) for image in images.values()]
        wanted = [image for image in complete if keep is None or keep(image)]
        self.num_left_out = len(complete) - len(wanted)
        self.images = spread(wanted, max_images)
        check_images(self.images, self.folder, self.file)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @cached_property
    def num_instances(self) -> int:
        return sum(len(image.instances) for image in self.images)

    def _read_images(self, entries: list[Any]) -> dict[int, CocoImage]:
        images: dict[int, CocoImage] = {}
        for place, entry in enumerate(entries):
            try:
                image_id, name, size = int(entry["id"]), str(entry["file_name"]), (entry["height"], entry["width"])
                rows, columns = map(int, size)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"image {place} (from 0) in {self.file} is {shortened(entry)}; an image has id, file_name, width "
                    f"and height. {SOURCE}"
                ) from error
            if rows < 1 or columns < 1:
                raise UserError(f"image {name} is {columns} x {rows} pixels in {self.file}; correct its size there")
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(
                    f"{self.file} names an image {name}, which is not in {self.folder}; file_name is a name in there"
                )
            if image_id in images:
                raise UserError(
                    f"the image id {image_id} comes twice in {self.file}, as {images[image_id].path.name} and as "
                    f"{name}; give every image an id of its own"
                )
            images[image_id] = CocoImage(image_id, self.folder / name, (rows, columns), ())
        if not images:
            raise UserError(f"{self.file} lists no image, so {self.name} is empty; {SOURCE}")
        return dict(sorted(images.items()))

    def _read_annotations(
        self, entries: list[Any], images: dict[int, CocoImage], *, needs_masks: bool
    ) -> dict[int, list[Instance]]:
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
                    f"annotation {place} (from 0) in {self.file} is {shortened(entry)}; an annotation has image_id, "
                    "category_id and bbox (left, top, width, height), and segmentation, area and iscrowd"
                ) from error
            named = f"annotation {entry.get('id', place)} in {self.file}"
            if image_id not in images:
                raise UserError(f"{named} is of an image {image_id}, which is not listed there; {SOURCE}")
            if category_id not in self.label_of:
                raise UserError(
                    f"{named} is of a category {category_id}, which is not listed there; the categories are "
                    f"{listed([str(known) for known in self.category_ids])}"
                )
            image = images[image_id]
            if not all(map(math.isfinite, (left, top, width, height, area))) or width < 0 or height < 0:
                raise UserError(
                    f"{named} has the box {entry['bbox']}; a box is left, top, width, height in pixels, finite and not "
                    "negative in size"
                )
            check_segmentation(segmentation, image.size, named, needed=needs_masks)
            instance = Instance(self.label_of[category_id], (left, top, width, height), area, is_crowd, segmentation)
            instances[image_id].append(instance)
            if reaches_beyond(instance, image.size):
                beyond.append(f"{entry['bbox']} in {image.path.name}, {image.size[1]} x {image.size[0]}")
        if len(beyond) > MAX_SHARE_BEYOND * len(entries):
            raise UserError(
                f"{len(beyond)} of {len(entries)} boxes in {self.file} reach beyond their images: {listed(beyond)}; a "
                "box is left, top, width, height in pixels, not its right and bottom end, nor shares of the image"
            )
        return instances


class CocoDetection:
    """The training and validation images of COCO, or of any data set in its layout.

    Training keeps images with at least one instance to learn from; validation keeps all, as the official score does.

    Args:
        max_images: at most so many of each split, spread evenly; only these are looked for on the disk.

    Raises:
        UserError: as CocoSplit; or the splits differ in their categories, or hold nothing to learn or to score.
    """

    def __init__(self, root: Path, *, max_images: int | None = None):
        self.root = root
        # Whatever is not there at all is said before files of hundreds of megabytes are read.
        for name in (TRAIN, VAL):
            find_split(root, name)
        self.train_split = CocoSplit(root, TRAIN, max_images=max_images, keep=has_targets)
        self.val_split = CocoSplit(root, VAL, max_images=max_images)
        self.train, self.val = self.train_split.images, self.val_split.images
        self.class_names, self.category_ids = self.val_split.class_names, self.val_split.category_ids
        train_categories = dict(zip(self.train_split.category_ids, self.train_split.class_names, strict=True))
        val_categories = dict(zip(self.category_ids, self.class_names, strict=True))
        if train_categories != val_categories:
            differ = sorted(train_categories.items() ^ val_categories.items())
            raise UserError(
                f"{self.train_split.file} and {self.val_split.file} differ in their categories: "
                f"{listed([f'{category_id} {name}' for category_id, name in differ])}; ids and names must be the same "
                "in both"
            )
        if not self.train:
            raise UserError(
                f"{self.train_split.file} holds no instance to learn from: no annotation that is no crowd and whose "
                "box has an area within its image; add annotations"
            )
        if not any(not instance.is_crowd for image in self.val for instance in image.instances):
            raise UserError(
                f"the {len(self.val)} validation images have no instance in {self.val_split.file}, so there is nothing "
                "to score; add annotations, or take more images (max-images)"
            )

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def describe(self) -> dict[str, Any]:
        """Dataset facts, recorded in result.json."""
        return {
            "split": f"{TRAIN}, {VAL}",
            "num_train_images": len(self.train),
            "num_val_images": len(self.val),
            "num_train_images_without_instances": self.train_split.num_left_out,
            "num_val_instances": self.val_split.num_instances,
            "num_classes": self.num_classes,
            "val_set": val_set(
                (image.path.relative_to(self.val_split.folder).as_posix() for image in self.val), self.class_names
            ),
        }

    def training_fingerprint(self) -> dict[str, Any]:
        """What a training that goes on must find again; validation images may come and go."""
        with self.train_split.file.open("rb") as file:
            annotations = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "num_train_images": len(self.train),
            "classes": self.class_names,
            "files": files_hash(self.train_split.folder, [image.path for image in self.train]),
            "annotations": annotations,
        }


def targets(image: CocoImage) -> list[Instance]:
    """The instances that a detector learns from: no crowds, and an area within the image.

    Source: mmdetection's CocoDataset, which also leaves out boxes less than a pixel wide or high.
    """

    def has_area(instance: Instance) -> bool:
        left, top, right, bottom = instance.box
        inside_width = min(right, image.size[1]) - max(left, 0)
        inside_height = min(bottom, image.size[0]) - max(top, 0)
        is_visible = inside_width > 0 and inside_height > 0 and instance.area > 0
        return is_visible and instance.bbox[2] >= 1 and instance.bbox[3] >= 1

    return [instance for instance in image.instances if not instance.is_crowd and has_area(instance)]


def has_targets(image: CocoImage) -> bool:
    return bool(targets(image))


def mask_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons, or run lengths compressed or not, as COCO's compressed run lengths."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    rle = run_lengths.frPyObjects(segmentation, *size)
    # An object behind others comes in several polygons.
    return run_lengths.merge(rle) if isinstance(rle, list) else rle


def find_split(root: Path, name: str) -> tuple[Path, Path]:
    """The folder of images and the file of annotations."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the folder that holds {name}/ and annotations/. {SOURCE}")
    folder, file = root / name, root / "annotations" / f"instances_{name}.json"
    if not folder.is_dir() or not file.is_file():
        missing = [str(path) for path, is_there in ((folder, folder.is_dir()), (file, file.is_file())) if not is_there]
        found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError(f"{' and '.join(missing)} not found; {root} holds {found}. {SOURCE}")
    return folder, file


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


def check_segmentation(segmentation: Any, size: tuple[int, int], named: str, *, needed: bool) -> None:
    """Raises ValueError unless these are polygons, or run lengths of a mask of (rows, columns)."""
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


def check_images(images: Sequence[CocoImage], folder: Path, file: Path) -> None:
    """All are there, and as large as the file says: what does not fit is better known now than after training."""
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(lambda image: stored_size(image.path) if image.path.is_file() else None, images))
    missing = [image.path.name for image, size in zip(images, sizes, strict=True) if size is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images that {file} lists are not in {folder}: {listed(missing)}; {SOURCE}"
        )
    differ = [
        f"{image.path.name} {size[1]} x {size[0]}, listed as {image.size[1]} x {image.size[0]}"
        for image, size in zip(images, sizes, strict=True)
        if size is not None and size != image.size
    ]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(images)} images in {folder} differ in size from what {file} says (width x height): "
            f"{listed(differ)}; boxes and masks are of the image as it is shown, after the rotation that its EXIF data "
            "ask for"
        )


def stored_size(path: Path) -> tuple[int, int]:
    """(rows, columns) as read_image will give them, from the header alone."""
    try:
        return read_size(path)
    except UnreadableImage as error:
        raise UserError(f"the image {path} cannot be read: {error}; get it again. {SOURCE}") from error


def shortened(entry: Any) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 120 else f"{text[:117]}..."
