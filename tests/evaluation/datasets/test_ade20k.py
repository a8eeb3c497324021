import pytest

from selfpatch.evaluation.datasets import ade20k
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.evaluation.datasets.segmentation_layouts import mask_of, save, write_ade20k


@pytest.mark.parametrize("place", ["", "ADEChallengeData2016"])
def test_the_original_has_150_classes(tmp_path, place):
    write_ade20k(tmp_path / place)
    data = read_segmentation(tmp_path)
    assert (data.num_classes, data.class_names[:2], data.class_names[149]) == (150, ["thing 1", "thing 2"], "thing 150")
    assert data.read_mask(data.val[0]).tolist() == mask_of(255, 0, 149).tolist()
    assert [note[:48] for note in data.notes] == [
        "training has 2 of the 20,210 images of ADE20K (S",
        "validation has 2 of the 2,000 images of ADE20K (",
    ]


def test_a_whole_one_and_borrowed_layouts_have_no_notes(tmp_path, monkeypatch):
    root = write_ade20k(tmp_path)
    monkeypatch.setattr(ade20k, "OFFICIAL", {"training": 2, "validation": 2})
    assert read_segmentation(root).notes == ()
    monkeypatch.undo()
    (root / "objectInfo150.txt").unlink()
    assert read_segmentation(root).notes == ()


def test_the_full_data_set_is_another_one(tmp_path):
    (tmp_path / "images/ADE/training").mkdir(parents=True)
    with pytest.raises(ValueError, match="the full ADE20K.*take ADEChallengeData2016.zip of the page"):
        read_segmentation(tmp_path)


def test_a_label_beyond_the_150(tmp_path):
    path = save(write_ade20k(tmp_path) / "annotations/training/ADE_training_1.png", mask_of(1, 151))
    with pytest.raises(
        ValueError, match=rf"{path.name} has a pixel labelled 151, but .*150 names 150 classes|labelled 151"
    ):
        read_segmentation(tmp_path)
