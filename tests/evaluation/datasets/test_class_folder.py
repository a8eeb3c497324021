import json
import os
import shutil

import pytest

from selfpatch.evaluation.datasets import labeled_images as labeled_images
from selfpatch.evaluation.datasets.class_folder import ClassFolder, matches_layout
from tests.evaluation.labeled_classes import write_class, write_classes


def test_reads_train_and_val(tmp_path):
    root = write_classes(tmp_path, num_classes=3)
    write_class(root / "train/bee/nested", 1, 1)  # its images count too
    (root / "train/.cache").mkdir()
    (root / "train/notes.txt").touch()
    data = ClassFolder(root)
    assert data.class_names == ["ant", "bee", "cat"]
    assert [item.label for item in data.train] == [0] * 3 + [1] * 4 + [2] * 3
    assert [item.path.relative_to(root).as_posix() for item in data.val[:2]] == ["val/ant/0.png", "val/ant/1.png"]
    assert data.read_image(data.val[0]).shape == (20, 30, 3)
    assert data.describe() == {
        "split": "train + val, a folder a class", "num_train_images": 10, "num_val_images": 6, "num_classes": 3,
        "notes": [], "val_set": "5f164be30807",
    }  # fmt: skip


def test_splits_every_class_by_the_hash_of_the_name(tmp_path):
    write_class(tmp_path / "ant", 0, 10)
    write_class(tmp_path / "bee", 1, 2)
    data = ClassFolder(tmp_path)
    assert [item.label for item in data.train] == [0] * 8 + [1]
    assert [item.label for item in data.val] == [0] * 2 + [1]
    assert not {item.path for item in data.train} & {item.path for item in data.val}
    # An image stays where it is when others come.
    held_out = {item.path for item in data.val if item.label == 1}
    shutil.copy(tmp_path / "ant/0.png", tmp_path / "ant/more.png")
    assert held_out == {item.path for item in ClassFolder(tmp_path).val if item.label == 1}


@pytest.mark.parametrize(
    ("train", "val"),
    [("training_set", "test_set"), ("training", "validation"), ("Train", "VAL"), ("TRAIN", "Test"), ("train", "valid"),
     ("train-set", "eval"), ("Training Data", "Testing Data"), ("trainset", "testset"), ("seg_train", "seg_test"),
     ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("train2017", "val2017"), ("train_images", "test_images")],
)  # fmt: skip
@pytest.mark.parametrize("link", [False, True])
def test_splits_under_the_names_of_other_data_sets(tmp_path, train, val, link):
    root = write_classes(tmp_path / "data", num_classes=3)
    expected = ClassFolder(root).describe()["val_set"]
    for old, new in (("train", train), ("val", val)):
        if link:
            (root / old).rename(tmp_path / new)
            (root / new).symlink_to(tmp_path / new)
        else:
            (root / old).rename(root / "name that stands between")
            (root / "name that stands between").rename(root / new)
    (root / "__MACOSX").mkdir()
    assert matches_layout(root)
    data = ClassFolder(root)
    assert data.class_names == ["ant", "bee", "cat"]
    assert (len(data.train), len(data.val), data.layout) == (9, 6, f"{train} + {val}, a folder a class")
    assert (data.describe()["val_set"] == expected) == (val == "val")


def test_test_images_are_left_alone_where_there_are_validation_images(tmp_path):
    root = write_classes(tmp_path, num_classes=2)
    write_class(root / "test" / "ant", 0, 4)
    data = ClassFolder(root)
    assert (data.layout, len(data.val)) == ("train + val, a folder a class", 4)
    assert data.notes == ["test/ is not used: val/ is there"]


@pytest.mark.parametrize(
    ("names", "message"),
    [(("training_set", "ant"), "holds training_set/ but no val/"), (("test", "ant", "bee"), "holds test/ but no train/"),
     (("Training", "train", "val"), "holds Training/ and train/, two folders for one split")],
)  # fmt: skip
def test_a_split_is_never_a_class(tmp_path, names, message):
    for i, name in enumerate(names):
        write_class(tmp_path / name, i, 3)
    with pytest.raises(ValueError, match=message):
        ClassFolder(tmp_path)
    assert not matches_layout(tmp_path)


def test_classes_whose_names_begin_like_splits(tmp_path):
    for i, name in enumerate(("train_station", "bus_station", "test tube", "trainer", "value")):
        write_class(tmp_path / name, i, 3)
    assert ClassFolder(tmp_path).num_classes == 5


def test_linked_classes_are_classes_and_what_is_left_out_is_noted(tmp_path):
    for i, name in enumerate(("ant", "bee")):
        write_class(tmp_path / "elsewhere" / name, i, 3)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere/bee/notes.txt").touch()
    (tmp_path / "elsewhere/bee/more.heic").touch()
    (tmp_path / "elsewhere/bee/more").symlink_to(tmp_path / "elsewhere")
    data = ClassFolder(tmp_path / "data")
    assert (data.class_names, len(data.train) + len(data.val)) == (["ant", "bee"], 6)
    assert data.describe()["notes"] == [
        "2 files were left out: 1 .heic, 1 .txt",
        "1 link to a folder was not followed: give the targets, or put the files there",
    ]


def test_names_of_classes_that_are_no_text(tmp_path):
    for i, name in enumerate((b"\xff", b"\x1b[31m", b"bee")):
        write_class(tmp_path / os.fsdecode(name), i, 2)
    data = ClassFolder(tmp_path)
    assert data.class_names == [r"\x1b[31m", "bee", r"\xff"]
    assert json.loads(json.dumps(data.describe(), ensure_ascii=False).encode())["num_classes"] == 3


def test_limits_images_evenly_over_classes(tmp_path):
    data = ClassFolder(write_classes(tmp_path, num_classes=3, num_train=5), max_images=7)
    assert [item.label for item in data.train] == [0, 0, 1, 1, 2, 2]
    assert [item.path.name for item in data.train[:2]] == ["0.png", "2.png"]
    with pytest.raises(ValueError, match="max-images is 2, less than one image for each of 3 classes; make it larger"):
        ClassFolder(tmp_path, max_images=2)


def damage(root):
    (root / "val/bee/0.png").write_bytes((root / "val/bee/0.png").read_bytes()[:60])
    (root / "train/ant/1.png").write_text("no image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no folder .*; give the folder that holds the classes"),
        (lambda root: shutil.rmtree(root / "val"), "holds train/ but no val/; add it, or leave both out"),
        (lambda root: shutil.rmtree(root / "train/bee"), "train lacks 1 of the classes that the other split has: bee;"),
        (lambda root: shutil.rmtree(root / "val/cat"), "val lacks 1 of the classes that the other split has: cat;"),
        (lambda root: [p.unlink() for p in (root / "train/bee").iterdir()], "there is no image below .*bee: looked"),
        (lambda root: [shutil.rmtree(root / s / n) for s in ("train", "val") for n in ("ant", "bee")],
         "train holds one class alone, cat; at least two classes are needed"),
        (lambda root: [shutil.rmtree(root / s) or (root / s).mkdir() for s in ("train", "val")], "holds no folders; at"),
        (damage, r"2 of 15 images in .* cannot be read: val/bee/0.png \(.*\), train/ant/1.png \(not a JPEG.*replace or"),
    ],
)  # fmt: skip
def test_refuses_what_is_not_complete(tmp_path, change, message):
    root = write_classes(tmp_path / "data", num_classes=3)
    change(root)
    with pytest.raises(ValueError, match=message):
        ClassFolder(root)


def test_of_large_sets_validation_images_are_decoded_first(tmp_path, monkeypatch):
    monkeypatch.setattr(labeled_images, "NUM_DECODED", 6)
    root = write_classes(tmp_path, num_classes=3)
    for split in ("train", "val"):
        path = root / split / "bee/1.png"
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="1 of 15 images in .* cannot be read: val/bee/1.png"):
        ClassFolder(root)


def test_refuses_a_class_of_one_image_where_the_split_is_ours(tmp_path):
    write_class(tmp_path / "ant", 0, 3)
    write_class(tmp_path / "bee", 1, 1)
    with pytest.raises(ValueError, match="bee holds one image; at least two are needed"):
        ClassFolder(tmp_path)
