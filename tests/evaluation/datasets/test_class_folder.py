import shutil

import pytest

from selfpatch.evaluation.datasets import labeled_images as labeled_images
from selfpatch.evaluation.datasets.class_folder import ClassFolder
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
    assert data.facts() == {
        "split": "train + val, a folder a class", "num_train_images": 10, "num_val_images": 6, "num_classes": 3,
        "val_set": "5f164be30807",
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
