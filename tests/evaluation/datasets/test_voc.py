from pathlib import Path

import numpy as np
import pytest

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.evaluation.datasets.segmentation_layouts import PIXELS, mask_of, save, write_list, write_voc

LISTS = "ImageSets/Segmentation"


@pytest.mark.parametrize("place", ["VOC2012", "VOCdevkit/VOC2012"])
def test_indices_of_the_palette_are_classes_and_the_background_is_one(tmp_path, place):
    write_voc(tmp_path / place)
    data = read_segmentation(tmp_path)
    assert (data.num_classes, data.class_names[0], data.class_names[15]) == (21, "background", "person")
    assert (len(data.train), len(data.val)) == (2, 1)
    assert data.read_mask(data.val[0]).tolist() == mask_of(0, 15, 20, 255).tolist()
    assert data.layout == "Pascal VOC 2012, train + val"
    assert data.describe()["notes"][0].startswith("train has 2 of the 1,464 images of Pascal VOC 2012")


@pytest.mark.parametrize(("folder", "name"), [("VOC2007", "Pascal VOC 2007"), ("own", "Pascal VOC layout")])
def test_other_years_and_own_data_are_not_called_2012(tmp_path, monkeypatch, folder, name):
    root = write_voc(tmp_path / folder)
    described = read_segmentation(root).describe()
    assert (described["split"], described["notes"]) == (f"{name}, train + val", [])
    monkeypatch.chdir(root)
    assert read_segmentation(Path()).describe() == described
    (root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(ValueError, match=f"looks like {name} but has no .*val.txt"):
        read_segmentation(root)


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png"])
def test_trains_on_the_masks_of_sbd_where_they_are(tmp_path, name, line):
    root = write_voc(tmp_path / "VOC2012", augmented=True)
    names = (root / LISTS / "trainaug.txt").read_text().split()
    (root / LISTS / "trainaug.txt").unlink()
    (root / LISTS / "train.txt").unlink()  # not needed then
    write_list(root / LISTS / name, [line.format(stem, stem) for stem in names])
    data = read_segmentation(root)
    assert data.layout == "Pascal VOC 2012, trainaug + val"
    assert [item.image.stem for item in data.train] == names
    assert np.unique(data.read_mask(data.train[0])).tolist() == [0, 1]
    assert 15 in data.read_mask(data.val[0])  # the official mask
    assert "2 of the" not in data.notes[0] and "3 of the 10,582" in data.notes[0]


def test_the_list_of_sbd_without_its_masks_is_said(tmp_path):
    root = write_voc(tmp_path / "VOC2012", augmented=True)
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    (root / "SegmentationClassAug").rmdir()
    data = read_segmentation(root)
    assert len(data.train) == 2
    assert "train is used: trainaug.txt is there, but SBD's masks (SegmentationClassAug) are not" in data.notes


def remove(path):
    def change(root):
        for file in (root / path).iterdir() if (root / path).is_dir() else ():
            file.unlink()
        (root / path).rmdir() if (root / path).is_dir() else (root / path).unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("JPEGImages"), r"looks like Pascal VOC 2012 but has no JPEGImages \(the images\); it comes with VOCtrain"),
        (remove("SegmentationClass"), r"has no SegmentationClass \(the masks\)"),
        (remove(f"{LISTS}/val.txt"), r"has no ImageSets.Segmentation.val.txt \(the names of the validation images\)"),
        (lambda root: write_list(root / LISTS / "val.txt", []), "the list .*val.txt is empty; it holds the names"),
        (lambda root: write_list(root / LISTS / "val.txt", ["a", "b"]), "2 of 2 names in .*val.txt are not in .*JPEGIm.*a.jpg, b"),
        (lambda root: write_list(root / LISTS / "val.txt", ["2008_000009"]), "1 of 1 names .* not in .*Class: 2008_000009.png"),
        (lambda root: write_list(root / LISTS / "val.txt", ["2007_000001"]), "1 images of .* in train.txt and in val.txt"),
        (lambda root: write_list(root / LISTS / "train.txt", ["2007_000001"] * 2), "has 1 names more than once: 2007_0"),
        (lambda root: (root / LISTS / "val.txt").write_bytes(b"\xff\xfe\xfd"), "the list .*val.txt cannot be read"),
        (
            lambda root: save(root / "SegmentationClass/2007_000003.png", mask_of(0, 21)),
            r"2007_000003.png has a pixel labelled 21, but Pascal VOC has 0 \(background\) to 20",
        ),
        (lambda root: save(root / "SegmentationClass/2007_000003.png", PIXELS), r"a color picture \(RGB\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, change, message):
    root = write_voc(tmp_path / "VOC2012")
    change(root)
    with pytest.raises(ValueError, match=message):
        read_segmentation(root)
