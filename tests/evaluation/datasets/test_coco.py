import json
import math
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle_mask
from pycocotools.coco import COCO

from selfpatch.evaluation.datasets.coco import TRAIN, VAL, CocoDetection, CocoSplit, targets
from selfpatch.evaluation.datasets.coco_annotations import mask_rle
from tests.evaluation.coco_scenes import CATEGORIES, write_coco


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "data")


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(root, tmp_path / "data"))


def file_of(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def change(root: Path, split: str, edit) -> None:
    content = json.loads(file_of(root, split).read_text())
    edited = edit(content)
    file_of(root, split).write_text(json.dumps(content if edited is None else edited))


def test_images_boxes_and_masks_are_those_of_pycocotools(root, capsys):
    oracle = COCO(file_of(root, VAL))
    split = CocoSplit(root, VAL)
    assert [image.id for image in split.images] == sorted(oracle.imgs)
    for image in split.images:
        expected = oracle.loadAnns(oracle.getAnnIds(image.id))
        assert image.read().shape == (*image.size, 3)
        assert image.masks().shape == (len(expected), *image.size)
        for instance, mask, box, annotation in zip(
            image.instances, image.masks(), image.boxes(), expected, strict=True
        ):
            assert np.array_equal(mask, oracle.annToMask(annotation))
            left, top, width, height = annotation["bbox"]
            assert box.tolist() == [left, top, left + width, top + height]
            assert split.category_ids[instance.label] == annotation["category_id"]
            assert (instance.is_crowd, instance.area) == (bool(annotation["iscrowd"]), annotation["area"])


def test_kinds_of_segmentation_all_occur(root):
    kinds = {
        "polygons" if isinstance(s, list) else type(s["counts"]).__name__
        for name in (TRAIN, VAL)
        for image in CocoSplit(root, name).images
        for s in (instance.segmentation for instance in image.instances)
    }
    assert kinds == {"polygons", "list", "str"}


def test_several_polygons_are_one_mask():
    halves = [[0, 0, 4, 0, 4, 8, 0, 8], [4, 0, 8, 0, 8, 8, 4, 8]]
    rle = mask_rle(halves, (10, 12))
    assert oracle_mask.decode(rle).sum() == 64


def test_category_ids_have_gaps_and_labels_have_none(root):
    data = CocoDetection(root)
    assert data.category_ids == [3, 7, 44] and data.class_names == ["disk", "box", "bar"]
    assert {data.val_split.label_of[id_]: CATEGORIES[id_] for id_ in CATEGORIES} == dict(enumerate(data.class_names))


def test_training_skips_images_with_nothing_on_them_and_validation_keeps_them(root):
    data = CocoDetection(root)
    assert (len(data.train), len(data.val)) == (4, 4)
    assert all(targets(image) for image in data.train) and not data.val[-1].instances
    assert data.val[-1].masks().shape == (0, 48, 64) and data.val[-1].boxes().shape == (0, 4)
    described = data.describe()
    assert (described["num_train_images"], described["num_val_images"], described["num_classes"]) == (4, 4, 3)
    assert described["num_train_images_without_instances"] == 1
    few = CocoDetection(root, max_images=2)
    assert (len(few.train), len(few.val)) == (2, 2)


def test_crowds_and_boxes_without_area_are_not_learned_from_but_kept_for_the_score(copy):
    def edit(content):
        image_id = content["annotations"][0]["image_id"]
        content["annotations"] = [
            annotation | {"image_id": image_id, "iscrowd": 0} | more
            for annotation, more in zip(
                [content["annotations"][0]] * 5,
                ({}, {"bbox": [3, 3, 8, 0]}, {"bbox": [63.9, 3, 0.5, 9]}, {"iscrowd": 1}, {"area": 0}),
                strict=True,
            )
        ]

    change(copy, VAL, edit)
    (image,) = [image for image in CocoSplit(copy, VAL).images if image.instances]
    assert len(image.instances) == 5 and targets(image) == [image.instances[0]]


def test_boxes_can_be_read_without_masks(copy):
    change(copy, VAL, lambda content: [a.pop("segmentation") for a in content["annotations"]] and None)
    assert len(CocoSplit(copy, VAL, needs_masks=False).images) == 4
    with pytest.raises(ValueError, match=r"annotation \d+ in .*val2017.json has no segmentation.*cocodataset.org"):
        CocoSplit(copy, VAL)


def test_images_that_are_not_kept_need_not_be_there(copy):
    kept = {image.path.name for image in CocoSplit(copy, VAL, max_images=1).images}
    for path in (copy / VAL).iterdir():
        if path.name not in kept:
            path.unlink()
    assert len(CocoSplit(copy, VAL, max_images=1).images) == 1


def first(content):
    return content["annotations"][0]


def rotate(path: Path) -> None:
    """Stored as before, shown turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def claim(path: Path, side: int) -> None:
    """A PNG whose header says that it has side x side pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, r"there is no folder .*data; give the folder that holds train2017/ and annotations/.*cocodataset"),
        (lambda root: shutil.rmtree(root / VAL), r"data/val2017 not found; .*data holds annotations, train2017\..*val2017.zip"),
        (lambda root: file_of(root, TRAIN).unlink(), r"instances_train2017.json not found.*annotations_trainval2017.zip"),
        (lambda root: file_of(root, VAL).write_text("{"), "val2017.json is damaged or no JSON.*get it again"),
        (lambda root: file_of(root, VAL).write_text("[1]"), "not in COCO's format: it has no list of images and of anno"),
        (lambda root: change(root, VAL, lambda c: c.pop("categories") and None), "has no list of categories"),
        (lambda root: change(root, VAL, lambda c: c | {"images": []}), "val2017.json lists no image, so val2017 is empty"),
        (lambda root: change(root, VAL, lambda c: c | {"annotations": []}), "4 validation images have no instance in"),
        (lambda root: change(root, TRAIN, lambda c: c | {"annotations": []}), "holds no instance to learn from"),
        (lambda root: change(root, VAL, lambda c: c["images"][0].pop("width") and None), "image 0 .* an image has id, file_n"),
        (lambda root: change(root, VAL, lambda c: c["images"][1].update(id=5)), "the image id 5 comes twice in .*000000.png"),
        (lambda root: change(root, VAL, lambda c: c["images"][1].update(file_name="../x.png")), "names an image ../x.png, whi"),
        (lambda root: next((root / TRAIN).iterdir()).unlink(), r"1 of 4 images that .* lists are not in .*train2017: 0000"),
        (lambda root: (root / VAL / "000001.png").unlink(), r"1 of 4 images that .* lists are not in .*val2017: 000001.png"),
        (lambda root: (root / VAL / "000001.png").write_bytes(b"no"), "000001.png cannot be read.*get it again"),
        (lambda root: rotate(root / VAL / "000001.png"), "1 of 4 images .* 000001.png 48 x 64, listed as 64 x 48.*EXIF"),
        (lambda root: change(root, VAL, lambda c: first(c).pop("bbox") and None), "annotation 0 .* has image_id, category_id"),
        (lambda root: change(root, VAL, lambda c: first(c).update(image_id=6)), "annotation 1 .* of an image 6, which is not"),
        (lambda root: change(root, VAL, lambda c: first(c).update(category_id=4)), "of a category 4, .*categories are 3, 7, 44"),
        (lambda root: change(root, VAL, lambda c: first(c).update(bbox=[1, 2, -3, 4])), r"has the box \[1, 2, -3, 4\]; a box is"),
        (lambda root: change(root, VAL, lambda c: first(c).update(bbox=[1, 2, float("nan"), 4])), r"has the box \[1, 2, nan, 4\]"),
        (lambda root: change(root, VAL, lambda c: first(c).update(bbox=[40, 2, 60, 9])), r"1 of \d+ boxes .* reach beyond their"),
        (lambda root: change(root, VAL, lambda c: first(c).update(segmentation=[[1, 2, 3, 4]])), "a polygon of less than three"),
        (lambda root: change(root, VAL, lambda c: first(c).update(segmentation=[[1, 2, 3, 4, "a", 6]])), "that is no number"),
        (lambda root: change(root, VAL, lambda c: first(c).update(segmentation="mask")), "neither a list of polygons nor run"),
        (
            lambda root: change(root, VAL, lambda c: first(c).update(segmentation={"size": [64, 48], "counts": [3072]})),
            r"a mask of \[64, 48\] \(rows, columns\), its image is \[48, 64\]; a mask is as large",
        ),
        (
            lambda root: change(root, VAL, lambda c: first(c).update(segmentation={"size": [48, 64], "counts": [3071]})),
            r"run lengths that do not fill its image of \[48, 64\]",
        ),
        (
            lambda root: change(root, VAL, lambda c: first(c).update(segmentation={"size": [48, 64], "counts": "zz"})),
            r"run lengths that do not fill its image of \[48, 64\]",
        ),
        (lambda root: change(root, VAL, lambda c: first(c).update(segmentation={"size": None, "counts": [3072]})), "a mask of null"),
        (lambda root: change(root, VAL, lambda c: first(c).update(segmentation=[[1, 2, 3, 4, 5, 10**400]])), "that is no number"),
        (lambda root: change(root, VAL, lambda c: c["images"][0].update(id=math.inf)), "image 0 .*Infinity.* an image has id, file"),
        (lambda root: change(root, VAL, lambda c: c["images"][0].update(width=math.inf)), "image 0 .* an image has id, file_n"),
        (lambda root: change(root, VAL, lambda c: first(c).update(image_id=math.inf)), "annotation 0 .* has image_id, category_id"),
        (lambda root: change(root, VAL, lambda c: first(c).update(area=10**400)), "annotation 0 .* has image_id, category_id"),
        (lambda root: change(root, VAL, lambda c: c["categories"][0].update(id=math.inf)), "a category in .* has no id or no"),
        (lambda root: claim(root / VAL / "000001.png", 20_000), "000001.png cannot be read: .*400000000 pixels"),
        (lambda root: change(root, VAL, lambda c: c["categories"][0].update(id=8)), "of a category 7, which is not listed"),
        (lambda root: change(root, VAL, lambda c: c["categories"][0].update(name="cube")), "differ in their categories: 7 "),
        (lambda root: change(root, VAL, lambda c: c["categories"][0].update(name="bar")), "2 categories in .* the name bar"),
        (lambda root: change(root, VAL, lambda c: c["categories"][0].pop("name") and None), "a category in .* has no id or no"),
        (lambda root: change(root, VAL, lambda c: c | {"categories": []}), "lists no category"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_said(copy, spoil, says):
    spoil(copy)
    with pytest.raises(ValueError, match=says):
        CocoDetection(copy)


def test_a_few_boxes_beyond_the_image_are_let_pass(copy):
    """As long as they are no sign that boxes mean something else."""

    def edit(content):
        annotation = first(content)
        content["annotations"] = [dict(annotation) for _ in range(200)]
        first(content).update(bbox=[60, 2, 60, 9])

    change(copy, VAL, edit)
    assert CocoSplit(copy, VAL).num_instances == 200


def test_sizes_are_of_images_as_they_are_shown(copy):
    path = copy / VAL / "000001.png"
    rotate(path)
    change(copy, VAL, lambda content: content["images"][1].update(width=48, height=64) or content | {"annotations": []})
    image = CocoSplit(copy, VAL).images[1]
    assert image.read().shape == (64, 48, 3)
