import pytest

from selfpatch.evaluation.datasets.cityscapes import CLASS_OF_LABEL_ID, SCORED
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED
from tests.evaluation.datasets.segmentation_layouts import mask_of, save, write_cityscapes


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelTrainIds",), ("labelIds", "labelTrainIds")])
@pytest.mark.parametrize("place", ["", "cityscapes"])
def test_19_classes_by_either_kind_of_mask(tmp_path, kinds, place):
    write_cityscapes(tmp_path / place, kinds=kinds)
    data = read_segmentation(tmp_path)
    assert (data.num_classes, data.class_names[0], data.class_names[18]) == (19, "road", "bicycle")
    assert [item.image.parent.name for item in data.train] == ["aachen", "bochum"]
    assert [item.image.parent.name for item in data.val] == ["lindau"]
    assert data.read_mask(data.val[0]).tolist() == mask_of(255, 0, 18, 255).tolist()
    assert data.val[0].mask.name.endswith(f"{kinds[0]}.png")
    assert "val has 1 of the 500 images of Cityscapes" in data.notes[1]


def test_label_ids_are_those_of_the_benchmark():
    """The table of cityscapesScripts, its scored ids written once more."""
    train_ids = "_______01__234___5_6789" + "abcdef__ghi"  # of ids 0 to 33; _: not scored
    for label, symbol in enumerate(train_ids):
        assert CLASS_OF_LABEL_ID[label] == (IGNORED if symbol == "_" else int(symbol, 19))
    assert (CLASS_OF_LABEL_ID[34:IGNORED] == -1).all() and CLASS_OF_LABEL_ID[IGNORED] == IGNORED
    assert len({name for _, name in SCORED}) == 19


def remove(pattern):
    def change(root):
        for path in sorted(root.glob(pattern)):
            path.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "gtFine").rename(root / "gtCoarse"), r"has no gtFine.train \(the train masks\), no gtFine.val .*; left.*download page"),
        (lambda root: (root / "leftImg8bit/val").rename(root / "x"), r"has no leftImg8bit.val \(the val images\)"),
        (remove("gtFine/*/*/*labelIds.png"), "has no CITY/NAME_gtFine_labelIds.png and no CITY/NAME_gtFine_labelTrain"),
        (remove("gtFine/val/*/*labelIds.png"), "1 of 1 images in .*val have no mask .*: lindau.lindau_000000_000019;"),
        (remove("leftImg8bit/train/aachen/*"), "1 of 2 masks in .*train have no image .*: aachen.aachen_000000"),
        (remove("leftImg8bit/val/*/*"), "leftImg8bit.val has no CITY/NAME_leftImg8bit.png"),
        (
            lambda root: save(root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", mask_of(7, 34)),
            "labelIds.png has a pixel labelled 34, but Cityscapes has label ids 0 to 33",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, change, message):
    root = write_cityscapes(tmp_path)
    change(root)
    with pytest.raises(ValueError, match=message):
        read_segmentation(root)
