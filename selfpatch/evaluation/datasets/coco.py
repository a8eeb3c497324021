"""COCO: images with boxes and masks of objects, as its website gives them, checked at the start.

ROOT/train2017/000000000009.jpg ...   ROOT/annotations/instances_train2017.json
ROOT/val2017/000000000139.jpg ...     ROOT/annotations/instances_val2017.json
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from selfpatch.data.reading.decode import UnreadableImage, read_size
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.coco_annotations import (
    SOURCE,
    CocoImage,
    Instance,
    read_annotations,
    read_categories,
    read_coco_json,
    read_images,
)
from selfpatch.evaluation.datasets.identity import files_hash, val_set
from selfpatch.evaluation.datasets.labeled_images import listed, spread

TRAIN, VAL = "train2017", "val2017"


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
        images = read_images(content["images"], self.folder, self.file)
        instances = read_annotations(
            content["annotations"], images, self.category_ids, self.file, needs_masks=needs_masks
        )
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
        """Facts in which a training that goes on must agree; validation images may come and go."""
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
