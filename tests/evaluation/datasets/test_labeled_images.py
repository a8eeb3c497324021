import pytest
from PIL import Image

from selfpatch.evaluation.datasets import labeled_images as labeled_images
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.evaluation.datasets.segmentation_layouts import (
    PIXELS,
    mask_of,
    save,
    write_ade20k,
    write_plain,
    write_voc,
)


@pytest.fixture
def large(monkeypatch):
    """Every set of more than one pair is a large one."""
    monkeypatch.setattr(labeled_images, "NUM_DECODED", 1)


def test_of_large_sets_headers_are_read_and_the_rest_is_said_later(tmp_path, large):
    root = write_voc(tmp_path)
    save(root / "SegmentationClass/2007_000001.png", mask_of(0, 99))
    path = root / "JPEGImages/2007_000001.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    data = read_segmentation(root)
    assert {item.size for item in data.train + data.val} == {(4, 6)}
    with pytest.raises(ValueError, match="2007_000001.png has a pixel labelled 99, but Pascal VOC has 0"):
        data.read_mask(data.train[0])
    with pytest.raises(ValueError, match="the image .*2007_000001.jpg cannot be read"):
        data.read_image(data.train[0])


def test_of_large_sets_validation_images_are_decoded_first(tmp_path, large):
    root = write_voc(tmp_path)
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        path = root / f"JPEGImages/{name}.jpg"
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="the image .*2007_000003.jpg cannot be read"):
        read_segmentation(root)


@pytest.mark.parametrize(
    ("num_val", "num_train", "chosen"),
    [(3, 4, {0, 1, 2, 3}), (4, 4, {0, 1, 2, 3}), (8, 4, {0, 2, 4, 6}), (2, 4, {0, 1, 2, 4}), (0, 2, {0, 1})],
)
def test_which_are_decoded(monkeypatch, num_val, num_train, chosen):
    monkeypatch.setattr(labeled_images, "NUM_DECODED", 4)
    assert labeled_images.indices_to_decode(num_val, num_train) == chosen


def test_of_large_sets_sizes_are_checked_all_the_same(tmp_path, large):
    root = write_voc(tmp_path)
    save(root / "SegmentationClass/2007_000001.png", mask_of(0, 1).T.copy())
    with pytest.raises(ValueError, match="2007_000001.jpg 6 x 4, its mask 4 x 6"):
        read_segmentation(root)
    (root / "SegmentationClass/2007_000001.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="the mask .*2007_000001.png cannot be read: no header.*it and its image"):
        read_segmentation(root)
    (root / "JPEGImages/2007_000001.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="the image .*2007_000001.jpg cannot be read: no header.*it and its mask"):
        read_segmentation(root)


def test_a_large_set_without_names_is_read_for_its_highest_label(tmp_path, large):
    root = write_plain(tmp_path)
    save(root / "masks/photo-3.png", mask_of(0, 9))
    assert read_segmentation(root).num_classes == 10


def test_headers_tell_the_size_that_decoding_gives(tmp_path, large):
    """Turned by EXIF data, in every format."""
    for i, ending in enumerate((".jpg", ".png", ".webp", ".tif")):
        exif = Image.Exif()
        exif[274] = 6
        path = tmp_path / f"images/photo-{i}{ending}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(path, exif=exif)
        save(tmp_path / f"masks/photo-{i}.png", mask_of(0, 1).T.copy())
    data = read_segmentation(tmp_path)
    assert [item.size for item in data.train + data.val] == [
        data.read_image(item).shape[:2] for item in data.train + data.val
    ]


def test_progress_of_the_check(tmp_path):
    calls = []
    read_segmentation(write_ade20k(tmp_path), report=lambda *call: calls.append(call))
    assert calls == [(i, 4) for i in range(1, 5)]
