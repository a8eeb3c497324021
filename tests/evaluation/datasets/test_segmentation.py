from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED

MASK = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
PIXELS = np.zeros((2, 3, 3), np.uint8)


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def write_ade20k(root: Path) -> Path:
    for split in ("training", "validation"):
        save(root / f"images/{split}/{split}.jpg", PIXELS)
        save(root / f"annotations/{split}/{split}.png", MASK)
    return root


def write_plain(root: Path, count: int = 10) -> Path:
    for i in range(count):
        save(root / f"images/photo-{i}.jpg", PIXELS)
        save(root / f"masks/photo-{i}.png", MASK)
    return root


# 1. Both layouts.


def test_ade20k_layout_leaves_label_0_out_and_counts_from_1(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path))
    assert data.class_names == ["1", "2"]
    assert [item.image.name for item in data.train] == ["training.jpg"]
    assert [item.image.name for item in data.val] == ["validation.jpg"]
    assert data.read_mask(data.train[0]).tolist() == [[IGNORED, 0, 1], [1, IGNORED, IGNORED]]
    assert data.read_image(data.train[0]).shape == (2, 3, 3)
    assert data.train[0].size == (2, 3)
    assert data.layout == "images + annotations, split by folder"


def test_plain_layout_counts_from_0(tmp_path):
    data = read_segmentation(write_plain(tmp_path))
    assert data.class_names == ["0", "1", "2"]
    assert data.read_mask(data.train[0]).tolist() == MASK.tolist()
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.layout == "images + masks, 20% for validation by the hash of the name"


def test_plain_layout_with_folders_for_the_splits(tmp_path):
    for split in ("training", "validation"):
        save(tmp_path / f"images/{split}/a.jpg", PIXELS)
        save(tmp_path / f"masks/{split}/a.png", MASK)
    data = read_segmentation(tmp_path)
    assert data.num_classes == 3 and data.layout == "images + masks, split by folder"


def test_the_split_by_name_is_the_same_everywhere_and_hardly_moves_with_more_images(tmp_path):
    few, more = (read_segmentation(write_plain(tmp_path / str(n), n)) for n in (50, 60))
    val_few, val_more = ({item.image.stem for item in data.val} for data in (few, more))
    assert not val_few & {item.image.stem for item in few.train}
    assert len(val_few) == 10 and len(val_few & val_more) >= 8
    assert sorted(val_few)[:3] == ["photo-2", "photo-22", "photo-25"]


def test_at_most_so_many_images_spread_evenly(tmp_path):
    data = read_segmentation(write_plain(tmp_path, 50), max_images=4)
    everything = read_segmentation(tmp_path)
    assert data.train == [everything.train[i] for i in (0, 10, 20, 30)]
    assert len(data.val) == 4


@pytest.mark.parametrize("name", ["classes.txt", "objectInfo150.txt"])
def test_class_names_from_a_file(tmp_path, name):
    lines = {
        "classes.txt": "\ufeffsky\ncar\nsky\n",
        "objectInfo150.txt": "Idx\tRatio\tName\n1\t0.5\tsky, air\t\n2\t0.1\tcar, auto\n3\t0.1\tsky\n",
    }
    write_ade20k(tmp_path)
    (tmp_path / name).write_text(lines[name], encoding="utf-8")
    assert read_segmentation(tmp_path).class_names == ["sky (1)", "car", "sky (3)"]


# 2. Kinds of files.


def test_palette_one_bit_and_16_bit_masks_are_read_as_numbers(tmp_path):
    write_plain(tmp_path, 2)
    palette = Image.fromarray(MASK)
    palette.putpalette([200, 0, 0, 0, 200, 0] * 128)
    palette.save(tmp_path / "masks/photo-0.png")
    save(tmp_path / "masks/photo-1.png", MASK.astype(np.uint16))
    save(tmp_path / "images/photo-2.png", PIXELS)
    save(tmp_path / "masks/photo-2.png", MASK == 1)
    data = read_segmentation(tmp_path)
    masks = {item.mask.stem: data.read_mask(item).tolist() for item in data.train + data.val}
    assert masks["photo-0"] == masks["photo-1"] == MASK.tolist()
    assert masks["photo-2"] == (MASK == 1).astype(int).tolist()


def test_a_mask_fits_the_rotated_image(tmp_path):
    write_plain(tmp_path, 3)
    exif = Image.Exif()
    exif[274] = 6  # stored lying, shown upright
    lying = save(tmp_path / "images/photo-1.jpg", PIXELS.swapaxes(0, 1), exif=exif)
    data = read_segmentation(tmp_path)
    assert {data.read_image(item).shape for item in data.train + data.val} == {(2, 3, 3)}
    save(lying, PIXELS, exif=exif)
    with pytest.raises(ValueError, match=r"photo-1.jpg 2 x 3, its mask 3 x 2.*rotation"):
        read_segmentation(tmp_path)


def test_hidden_and_other_files_do_not_count(tmp_path):
    write_plain(tmp_path)
    (tmp_path / "images/.DS_Store").touch()
    (tmp_path / "images/._photo-1.jpg").touch()
    (tmp_path / "masks/readme.txt").touch()
    assert len(read_segmentation(tmp_path).train) == 8


# 3. What is wrong, in words.


def no_folder(root):
    return root / "missing"


def no_layout(root):
    save(root / "pictures/a.jpg", PIXELS)
    return root


def class_names_in_latin_1(root):
    (write_plain(root) / "classes.txt").write_text("B\xe4r\nHund\nKatze\n", encoding="latin-1")
    return root


def ade20k_names_in_latin_1(root):
    (write_ade20k(root) / "objectInfo150.txt").write_text("Name\nB\xe4r\nHund\n", encoding="latin-1")
    return root


def images_without_masks(root):
    write_plain(root)
    for i in range(4):
        (root / f"masks/photo-{i}.png").unlink()
    return root


def masks_without_images(root):
    save(write_plain(root) / "masks/extra.png", MASK)
    return root


def no_validation_folder(root):
    write_ade20k(root)
    for folder in ("images", "annotations"):
        next((root / folder / "validation").iterdir()).unlink()
        (root / folder / "validation").rmdir()
    return root


def empty_split(root):
    write_ade20k(root)
    next((root / "images/validation").iterdir()).unlink()
    return root


def unknown_splits(root):
    save(root / "images/first/a.jpg", PIXELS)
    save(root / "masks/first/a.png", MASK)
    return root


def one_image(root):
    return write_plain(root, 1)


def another_size(root):
    save(write_plain(root) / "masks/photo-3.png", MASK.T.copy())
    return root


def label_beyond_the_names(root):
    (write_ade20k(root) / "classes.txt").write_text("sky\ncar\n")
    save(root / "annotations/validation/validation.png", np.where(MASK == 1, 3, MASK).astype(np.uint8))
    return root


def label_of_16_bits(root):
    save(write_plain(root) / "masks/photo-3.png", np.full((2, 3), 500, np.uint16))
    return root


def color_mask(root):
    save(write_plain(root) / "masks/photo-3.png", PIXELS)
    return root


def gray_levels(root):
    write_plain(root, 3)
    for i in range(3):
        save(root / f"masks/photo-{i}.png", np.where(MASK == 1, 255, 0).astype(np.uint8))
    return root


def broken_image(root):
    path = write_plain(root) / "images/photo-3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return root


def broken_mask(root):
    path = write_plain(root) / "masks/photo-3.png"
    path.write_bytes(path.read_bytes()[:45])
    return root


def no_mask(root):
    path = write_plain(root) / "masks/photo-3.png"
    path.write_text("not a picture")
    return root


def twice(root):
    save(write_plain(root) / "images/photo-3.png", PIXELS)
    return root


LAYOUTS = r"annotations/\{training,validation\}/NAME.png(.|\n)*masks/NAME.png"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, f"there is no folder .*missing;(.|\n)*{LAYOUTS}"),
        (class_names_in_latin_1, "the list .*classes.txt cannot be read: .*; it holds one name per line, in UTF-8"),
        (ade20k_names_in_latin_1, "the list .*objectInfo150.txt cannot be read: .* UTF-8"),
        (no_layout, f"holds pictures;(.|\n)*{LAYOUTS}"),
        (
            images_without_masks,
            r"4 of 10 images in .* have no mask .*: photo-0.jpg, photo-1.jpg, photo-2.jpg, \.\.\.; add",
        ),
        (masks_without_images, "1 of 11 masks in .*masks have no image of the same name in .*: extra.png; add"),
        (no_validation_folder, f"images holds training/ but no val/; add it, (.|\n)*{LAYOUTS}"),
        (empty_split, f"images/validation holds no images(.|\n)*{LAYOUTS}"),
        (unknown_splits, f"images holds no images(.|\n)*{LAYOUTS}"),
        (one_image, "holds one image; at least two are needed"),
        (another_size, r"1 of 10 masks differ .*\(width x height\): photo-3.jpg 3 x 2, its mask 2 x 3; a mask labels"),
        (
            label_beyond_the_names,
            r"validation.png has a pixel labelled 3, but .*classes.txt names 2 classes.*0 to 2 \(",
        ),
        (label_of_16_bits, "photo-3.png has a pixel labelled 500; classes go up to 254"),
        (color_mask, r"photo-3.png cannot be read: a color picture \(RGB\); a mask holds one number per pixel"),
        (gray_levels, "fewer than two classes: .* the highest label is 0; labels are class numbers, not gray levels"),
        (broken_image, "the image .*photo-3.jpg cannot be read: .*; replace it"),
        (broken_mask, "the mask .*photo-3.png cannot be read: .*; replace it"),
        (no_mask, "the mask .*photo-3.png cannot be read: .*; replace it"),
        (twice, "several files of one name .*: photo-3.(jpg|png); keep one of each"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, spoil, message):
    root = spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_segmentation(root)
