"""Images with boxes of objects, in Pascal VOC's layout, COCO's, or as images/ and annotations/*.xml; checked whole."""

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Real

from selfpatch.config import RGB_8, PixelFormat
from selfpatch.data.image_folder import ENDINGS
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.coco import VAL, CocoSplit
from selfpatch.evaluation.datasets.identity import val_set
from selfpatch.evaluation.datasets.labeled_images import (
    files_by_stem,
    listed,
    read_image_or_raise,
    read_name_list,
    spread,
)
from selfpatch.evaluation.datasets.readable import check_readable
from selfpatch.evaluation.task import ProgressFn, no_progress

LAYOUTS = """
  JPEGImages/NAME.jpg  Annotations/NAME.xml  ImageSets/Main/SPLIT.txt   (Pascal VOC, or a folder that holds VOC2007 ...)
  SPLIT/NAME.jpg       annotations/instances_SPLIT.json                 (COCO)
  images/NAME.jpg      annotations/NAME.xml                             (with VOC's kind of XML)"""
LISTS = Path("ImageSets") / "Main"
VOC_SPLIT = "trainval"
SIDES = ("xmin", "ymin", "xmax", "ymax")
BEYOND_PX = 1  # boxes may reach so far beyond the image: tools differ in how they round

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; the last two lie just outside


def matches_layout(root: Path) -> bool:
    """True if there are images and files of boxes where a layout has them."""
    return (
        bool(voc_folders(root))
        or is_coco(root)
        or ((root / "images").is_dir() and any((root / "annotations").glob("*.xml")))
    )


class BoxImage(NamedTuple):
    path: Path
    size: tuple[int, int]  # (rows, columns)
    boxes: tuple[Box, ...]  # one at least


class BoxFolder:
    """The images of one split that have objects to be found, with their boxes.

    Of VOC's XML all objects count, or with skip_hard those that are called neither difficult nor truncated; its pixels
    are counted from 1, and the last one is inside. Of COCO crowds do not count, and boxes are rounded to whole pixels.

    Args:
        split: the name of a list in ImageSets/Main, None: trainval; or of COCO's folder, None: val2017. The plain
            layout has no splits.
        max_images: at most so many, spread evenly over the names; only these are checked.
        pixels: the format of the images, that of the backbone.

    Raises:
        UserError: the folder is not complete and consistent, or has no object; the message names files.

    Source: valeoai/LOST datasets.py.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str | None = None,
        skip_hard: bool = False,
        max_images: int | None = None,
        report: ProgressFn = no_progress,
        pixels: PixelFormat = RGB_8,
    ):
        self.pixels = pixels
        if is_coco(root):
            self.layout, items = coco_images(root, split, skip_hard=skip_hard, max_images=max_images)
        else:
            self.layout, pairs = find_pairs(root, split)
            pairs = spread(pairs, max_images)
            sizes = check_readable(root, [image for image, _ in pairs], report, num_val=len(pairs), pixels=pixels)
            items = [
                BoxImage(image, size, read_boxes(annotation, size, skip_hard=skip_hard))
                for (image, annotation), size in zip(pairs, sizes, strict=True)
            ]
        self.images = [item for item in items if item.boxes]
        self.num_left_out = len(items) - len(self.images)
        if not self.images:
            raise UserError(
                f"none of {len(items)} images in {root} has an object"
                + (" that is neither difficult nor truncated (skip-hard)" if skip_hard else "")
                + ", so there is nothing to find; add objects to the annotations, or take more images (max-images)"
            )

    def describe(self) -> dict[str, Any]:
        """Dataset facts, recorded in result.json."""
        return {
            "split_found": self.layout,
            "num_images": len(self.images),
            "num_images_without_objects": self.num_left_out,
            "num_objects": sum(len(item.boxes) for item in self.images),
            "val_set": val_set(item.path.name for item in self.images),
        }

    def read_image(self, item: BoxImage) -> Real[np.ndarray, "H W _c"]:
        return read_image_or_raise(item.path, self.pixels)


def is_coco(root: Path) -> bool:
    return any((root / "annotations").glob("instances_*.json"))


def coco_images(
    root: Path, split: str | None, *, skip_hard: bool, max_images: int | None
) -> tuple[str, list[BoxImage]]:
    """Name of the layout, and the images of the split, those without objects included."""
    if skip_hard:
        raise UserError("skip-hard goes by what Pascal VOC says of its objects, which COCO does not; leave it out")
    name = split or VAL
    images = [
        BoxImage(
            image.path,
            image.size,
            tuple(tuple(float(round(side)) for side in item.box) for item in image.instances if not item.is_crowd),
        )
        for image in CocoSplit(root, name, needs_masks=False, max_images=max_images).images
    ]
    return f"COCO, {name}", images


def find_pairs(root: Path, split: str | None) -> tuple[str, list[tuple[Path, Path]]]:
    """Name of the layout, and the images of the split with their annotations."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the folder that holds images and boxes:{LAYOUTS}")
    years = voc_folders(root)
    if len(years) > 1:
        raise UserError(f"{root} holds {listed([str(year.relative_to(root)) for year in years])}; give one of them")
    if years:
        name = split or VOC_SPLIT
        return f"Pascal VOC, {name}", voc_pairs(years[0], name)
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        if split is not None:
            raise UserError(f"split is {split}, but {root} (images/ and annotations/) has no splits; leave it out")
        return "images + annotations", plain_pairs(root)
    found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise UserError(f"{root} holds {found}; images and boxes are expected in one of these layouts:{LAYOUTS}")


def voc_folders(root: Path) -> list[Path]:
    """The folder itself, or those of the years in it."""
    folders = (root, *sorted(root.glob("VOC*")))
    # DAVIS has folders of these names too.
    return [folder for folder in folders if any((folder / "Annotations").glob("*.xml"))]


def voc_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    names_file = root / LISTS / f"{split}.txt"
    if not names_file.is_file():
        # Lists of one class are called CLASS_SPLIT.txt.
        there = sorted(path.stem for path in (root / LISTS).glob("*.txt") if "_" not in path.stem)
        raise UserError(
            f"there is no list {names_file}; "
            + (f"the splits there are: {', '.join(there)}" if there else "it has one image name per line")
        )
    pairs = [
        (root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml")
        for name in read_name_list(names_file)
    ]
    for kind, paths in zip(("images", "annotations"), zip(*pairs, strict=True), strict=True):
        if missing := [str(path.relative_to(root)) for path in paths if not path.is_file()]:
            raise UserError(
                f"{len(missing)} of {len(pairs)} {kind} that {names_file} names are not there: {listed(missing)}; "
                "unpack the archive again, or remove them from the list"
            )
    return pairs


def plain_pairs(root: Path) -> list[tuple[Path, Path]]:
    image_of = files_by_stem(root / "images", ENDINGS, layouts=LAYOUTS)
    annotation_of = files_by_stem(root / "annotations", (".xml",), layouts=LAYOUTS)
    for kind, of_kind in (("image", image_of), ("annotation", annotation_of)):
        if not of_kind:
            raise UserError(f"{root} has no {kind} in {kind}s/; the layouts are:{LAYOUTS}")
    for kind, of_kind, others in (("image", image_of, annotation_of), ("annotation", annotation_of, image_of)):
        if unpaired := sorted(of_kind.keys() - others.keys()):
            other = "annotation" if kind == "image" else "image"
            raise UserError(
                f"{len(unpaired)} of {len(of_kind)} {kind}s in {root} have no {other} of the same name: "
                f"{listed([of_kind[stem].name for stem in unpaired])}; add the {other}s or remove the {kind}s"
            )
    return [(image_of[stem], annotation_of[stem]) for stem in sorted(image_of)]


def read_boxes(path: Path, size: tuple[int, int], *, skip_hard: bool) -> tuple[Box, ...]:
    """The objects of one annotation file; `size` are rows and columns of its image.

    Raises:
        UserError: it is no such file, of another image size, or a box is not in the image.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"the annotation {path} is damaged or no XML: {error}; get it again") from error
    said = number(root, "size/height", path, default=0), number(root, "size/width", path, default=0)
    if all(said) and said != size:  # 0 where a tool did not know
        raise UserError(
            f"the annotation {path} is of an image of {said[1]:g} x {said[0]:g} pixels, but its image is {size[1]} x "
            f"{size[0]} (width x height); boxes are of the image as it is shown, after the rotation that its EXIF data "
            "ask for"
        )
    boxes = []
    for element in root.findall("object"):
        is_hard = any(number(element, name, path, default=0) for name in ("difficult", "truncated"))
        left, top, right, bottom = (
            number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if not (0 < left <= right <= size[1] and 0 < top <= bottom <= size[0]):
            raise UserError(
                f"the annotation {path} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), its image is "
                f"{size[1]} x {size[0]} (width x height); pixels are counted from 1, xmin and ymin come first"
            )
        if not (skip_hard and is_hard):
            boxes.append((left - 1, top - 1, right, bottom))
    return tuple(boxes)


def number(element: ElementTree.Element, name: str, path: Path, default: int | None = None) -> int:
    """A whole number below an element; a few in VOC have a fraction, which is cut off."""
    text = element.findtext(name)
    if text is None and default is not None:
        return default
    try:
        return int(float(text or ""))
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"the annotation {path} has {text!r} where {name} of an {element.tag} should be a number; correct it"
        ) from error
