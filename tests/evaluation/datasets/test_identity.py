import json
import shutil

import pytest

from selfpatch.evaluation.datasets.box_folder import BoxFolder
from selfpatch.evaluation.datasets.class_folder import ClassFolder
from selfpatch.evaluation.datasets.coco import CocoDetection
from selfpatch.evaluation.datasets.davis import Davis
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.evaluation import boxed_scenes
from tests.evaluation.coco_scenes import write_coco
from tests.evaluation.datasets.segmentation_layouts import write_cityscapes, write_plain, write_voc
from tests.evaluation.labeled_classes import write_classes
from tests.evaluation.labeled_scenes import write_ade20k
from tests.evaluation.moving_shapes import write_davis


def write_boxes(root):
    return boxed_scenes.write_voc(root / "VOC2012")


SETS = {
    "ade20k": (write_ade20k, read_segmentation),
    "cityscapes": (write_cityscapes, read_segmentation),
    "plain": (write_plain, read_segmentation),
    "voc": (write_voc, read_segmentation),
    "classes": (write_classes, ClassFolder),
    "coco": (write_coco, CocoDetection),
    "davis": (write_davis, Davis),
    "boxes": (write_boxes, BoxFolder),
}


@pytest.mark.parametrize("name", SETS)
def test_a_moved_folder_is_the_same_data_set(tmp_path, name):
    write, read = SETS[name]
    root = write(tmp_path / "here")
    described = read(root).describe()
    assert len(described["val_set"]) == 12
    moved = read(shutil.copytree(root, tmp_path / "there"))
    assert moved.describe() == described
    if name not in ("davis", "boxes"):  # which nothing is trained on
        assert moved.training_fingerprint() == read(root).training_fingerprint()


def rename(path, *others):
    for old in (path, *others):
        old.rename(old.with_stem(f"{old.stem}x"))


def rename_in_coco(root):
    file = root / "annotations/instances_val2017.json"
    rename(root / "val2017/000000.png")
    file.write_text(file.read_text().replace("000000.png", "000000x.png"))


def rename_class_in_coco(root):
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}2017.json"
        file.write_text(file.read_text().replace('"disk"', '"disc"'))


def rename_in_davis(root):
    rename(root / "JPEGImages/480p/ball/00000.jpg", root / "Annotations/480p/ball/00000.png")


def rename_in_boxes(root):
    rename(root / "JPEGImages/000001.jpg", root / "Annotations/000001.xml")
    file = root / "ImageSets/Main/trainval.txt"
    file.write_text(file.read_text().replace("000001", "000001x"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "ade20k",
            lambda root: rename(
                root / "images/validation/validation_0.png", root / "annotations/validation/validation_0.png"
            ),
        ),
        ("ade20k", lambda root: (root / "classes.txt").write_text("one\ntwo\nthree\nfour\n")),
        ("classes", lambda root: rename(root / "val/ant/0.png")),
        ("classes", lambda root: rename(root / "val/ant", root / "train/ant")),
        ("coco", rename_in_coco),
        ("coco", rename_class_in_coco),
        ("davis", rename_in_davis),
        ("boxes", rename_in_boxes),
    ],
)
def test_data_sets_of_the_same_counts_are_told_apart(tmp_path, name, change):
    write, read = SETS[name]
    root = write(tmp_path)
    before = read(root).describe()
    change(root)
    after = read(root).describe()
    assert after.pop("val_set") != before.pop("val_set")
    assert after == before


def remove_in_coco(root):
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    gone = content["images"].pop(1)
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone["id"]]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "remove", "train_file"),
    [
        (
            "ade20k",
            lambda root: [next(root.glob(f"{kind}/validation/*_0.png")).unlink() for kind in ("images", "annotations")],
            "images/training/training_0.png",
        ),
        (
            "ade20k",
            lambda root: [next(root.glob(f"{kind}/validation/*_0.png")).unlink() for kind in ("images", "annotations")],
            "annotations/training/training_0.png",
        ),
        ("classes", lambda root: (root / "val/ant/0.png").unlink(), "train/ant/0.png"),
        ("coco", remove_in_coco, "train2017/000000.png"),
    ],
)
def test_a_training_knows_its_own_images_by_name_and_size_and_no_others(tmp_path, name, remove, train_file):
    write, read = SETS[name]
    root = write(tmp_path)
    data = read(root)
    num_val, identity = len(data.val), data.training_fingerprint()
    remove(root)
    data = read(root)
    assert (len(data.val), data.training_fingerprint()) == (num_val - 1, identity)
    # Bytes behind the end of a picture do not matter to its decoder.
    with (root / train_file).open("ab") as file:
        file.write(b"more")
    assert read(root).training_fingerprint() != identity


def test_a_training_knows_its_annotations(tmp_path):
    """Categories that change their ids in both files: the same counts, names and images, other labels."""
    root = write_coco(tmp_path)
    data = CocoDetection(root)
    described, identity = data.describe(), data.training_fingerprint()
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["category_id"] = {3: 7, 7: 3}.get(entry["category_id"], entry["category_id"])
        file.write_text(json.dumps(content))
    data = CocoDetection(root)
    assert data.describe() == described
    assert data.training_fingerprint() != identity
