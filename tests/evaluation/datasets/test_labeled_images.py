import os

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.datasets import labeled_images as labeled_images
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.data.reading.made_files import png_bytes, png_chunk
from tests.evaluation.datasets.segmentation_layouts import (
    PIXELS,
    SIZE,
    mask_of,
    save,
    write_ade20k,
    write_cityscapes,
    write_list,
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
    with pytest.raises(ValueError, match="the mask .*2007_000001.png cannot be read: not a JPEG.*it and its image"):
        read_segmentation(root)
    (root / "JPEGImages/2007_000001.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="the image .*2007_000001.jpg cannot be read: not a JPEG.*it and its mask"):
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


@pytest.mark.parametrize(
    ("color_type", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (3, 1), (3, 2), (3, 4), (3, 8)]
)
@pytest.mark.parametrize("layout", ["plain", "voc", "cityscapes", "ade20k"])
def test_every_layout_reads_stored_numbers(tmp_path, layout, bits, color_type):
    """Masks of every bit depth mean the same as those of 8 bits."""
    write, pattern = {
        "plain": (write_plain, "masks/*.png"),
        "voc": (write_voc, "SegmentationClass/*.png"),
        "cityscapes": (lambda root: write_cityscapes(root, kinds=("labelTrainIds",)), "gtFine/*/*/*_labelTrainIds.png"),
        "ade20k": (write_ade20k, "annotations/*/*.png"),
    }[layout]
    root = write(tmp_path)
    labels = np.resize(np.arange(min(2**bits, 19)), SIZE)
    palette = png_chunk(b"PLTE", bytes(3 * 2 ** min(bits, 8))) if color_type == 3 else b""
    for path in root.glob(pattern):
        path.write_bytes(png_bytes(labels, bits, color_type, chunks=(palette,)))
    data = read_segmentation(root)
    classes = data.read_mask(data.val[0])
    first_label = 1 if layout == "ade20k" else 0  # where label 0 is not scored
    assert classes.tolist() == np.where(labels < first_label, 255, labels - first_label).tolist()


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("write", [write_plain, write_voc, write_cityscapes, write_ade20k])
def test_masks_of_other_formats_are_refused(tmp_path, write, format_, monkeypatch):
    root = write(tmp_path)
    for path in [*root.rglob("*_labelIds.png"), *root.glob("[mSa]*/**/*.png")]:
        with Image.open(path) as mask:
            mask.convert("L").save(path, format=format_)
    for num_decoded in (2000, 0):
        monkeypatch.setattr(labeled_images, "NUM_DECODED", num_decoded)
        with pytest.raises(ValueError, match=f"the mask .*png cannot be read: a {format_} file"):
            read_segmentation(root)


@pytest.mark.parametrize(
    ("line", "name"),
    [("frame.0", "frame.0"), ("2007_000001", "2007_000001"), ("a.b.JPG", "a.b"), ("my image 7", "my image"),
     ("/JPEGImages/a.0.jpg /SegmentationClass/a.0.png", "a.0"), ("2007_000001  -1", "2007_000001"), ("two words", "two words"),
     ("v1.5 -1", "v1.5"), ("sub/frame.0", "frame.0"), ("a\u2028b\x1cc", "a\u2028b\x1cc")],
)  # fmt: skip
def test_names_in_lists(tmp_path, line, name):
    (tmp_path / "list.txt").write_text(f"{line}\nother\n")
    assert labeled_images.read_name_list(tmp_path / "list.txt") == [name, "other"]


def test_names_that_differ_behind_a_dot(tmp_path):
    root = write_voc(tmp_path)
    for path in [*root.glob("JPEGImages/2007*"), *root.glob("SegmentationClass/*")]:
        path.rename(path.with_name(path.name.replace("2007_00000", "frame.")))
    write_list(root / "ImageSets/Segmentation/train.txt", ["frame.1", "frame.2"])
    write_list(root / "ImageSets/Segmentation/val.txt", ["frame.3"])
    data = read_segmentation(root)
    assert [item.image.name for item in data.train + data.val] == ["frame.1.jpg", "frame.2.jpg", "frame.3.jpg"]


@pytest.mark.parametrize("write", [write_plain, write_voc, write_cityscapes, write_ade20k])
def test_files_that_macos_leaves_beside_others_do_not_count(tmp_path, write):
    """Resource forks, ._NAME, are no images though they are called so."""
    root = write(tmp_path)
    before = read_segmentation(root).describe()
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(80))
    assert read_segmentation(root).describe() == before


def test_names_without_utf8(tmp_path):
    for i in range(4):
        for folder, ending, array in (("images", b".jpg", PIXELS), ("masks", b".png", mask_of(0, 1))):
            path = save(tmp_path / folder / f"{i}{ending.decode()}", array)
            os.rename(path, os.fsencode(tmp_path / folder) + b"/\xff%d" % i + ending)
    assert len(read_segmentation(tmp_path).train) == 3
