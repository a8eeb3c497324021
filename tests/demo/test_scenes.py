"""Made-up scenes: the files are what a seed says, masks are exact, and colour says nothing about the class."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from selfpatch.demo.scenes import CLASSES, scene, write_scenes

SPLITS = ("images", "ade20k/images/training", "ade20k/images/validation")


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene((7, index), (64, 64)) for index in range(200)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, num_unlabeled=4, num_train=3, num_val=2, size=48, seed=5)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scene_is_a_function_of_its_key() -> None:
    first, again, other = (scene(key, (40, 56)) for key in [(1, 2, 3), (1, 2, 3), (1, 2, 4)])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_key_gives_the_same_scene_at_every_size() -> None:
    for index in range(10):
        (small_image, small_labels), (image, labels) = scene((index,), (64, 80)), scene((index,), (192, 240))
        assert (labels[1::3, 1::3] == small_labels).mean() > 0.999  # the middles of 3 x 3 pixels are the small pixels
        shrunk = cv2.resize(image, (80, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small_image).mean() < 12


def test_sizes() -> None:
    image, labels = scene((0,), (33, 70))
    assert (image.shape, labels.shape) == ((33, 70, 3), (33, 70))
    shapes = [scene((index,), 40)[1].shape for index in range(40)]
    assert {min(shape) for shape in shapes} == {40}
    assert {max(shape) for shape in shapes} == {40, 50, 53, 60}
    assert any(rows > columns for rows, columns in shapes)


@pytest.mark.parametrize("size", [31, (100, 20)])
def test_too_small_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too small"):
        scene((0,), size)


def test_negative_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation scenes is -1"):
        write_scenes(tmp_path, num_unlabeled=1, num_train=1, num_val=-1, size=48, seed=0)
    assert not list(tmp_path.iterdir())


def test_layout_is_that_of_ade20k(written: Path) -> None:
    names = (written / "ade20k" / "classes.txt").read_text().split()
    assert names == list(CLASSES)
    for folder, count in zip(SPLITS, (4, 3, 2), strict=True):
        assert len(list((written / folder).iterdir())) == count
    for split in ("training", "validation"):
        for image_path in (written / "ade20k" / "images" / split).iterdir():
            annotation_path = written / "ade20k" / "annotations" / split / f"{image_path.stem}.png"
            with Image.open(image_path) as image, Image.open(annotation_path) as annotation:
                assert (image.format, image.mode, annotation.mode) == ("JPEG", "RGB", "L")
                assert image.size == annotation.size
                assert set(np.unique(np.asarray(annotation))) <= set(range(1, 1 + len(names)))


def test_files_depend_on_seed_split_and_index_alone(written: Path, tmp_path: Path) -> None:
    for folder, seed in (("more", 5), ("other", 6)):
        write_scenes(tmp_path / folder, num_unlabeled=5, num_train=3, num_val=3, size=48, seed=seed)
    expected, more, other = contents(written), contents(tmp_path / "more"), contents(tmp_path / "other")
    assert expected.items() < more.items()
    assert not any(other[name] == data for name, data in more.items() if not name.endswith("classes.txt"))


def test_no_scene_comes_twice(written: Path) -> None:
    images = [path.read_bytes() for split in SPLITS for path in (written / split).iterdir()]
    assert len(set(images)) == len(images) == 9


def test_every_class_is_common_and_no_pixel_is_left_out(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    shares = np.stack([np.bincount(labels.ravel(), minlength=1 + len(CLASSES)) / labels.size for _, labels in scenes])
    assert shares.shape[1] == 1 + len(CLASSES)
    assert shares[:, 0].sum() == 0
    assert shares[:, 1:].mean(axis=0).min() > 0.06
    assert ((shares > 0).mean(axis=0)[1:] > 0.4).all()


def test_objects_cover_many_patches(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    sizes = [(labels == label).sum() for _, labels in scenes for label in np.unique(labels) if label > 1]
    assert np.median(sizes) > 16 * 4 * 4  # 16 patches of 8 px at 128 px, so of 4 px at 64


def test_colour_says_nothing_about_the_class(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Mean and spread of an instance's colours, by its five nearest neighbours, guess no better than chance."""
    descriptors, classes = [], []
    for image, labels in scenes:
        for label in np.unique(labels[labels > 1]):
            colors = image[labels == label] / 255
            descriptors.append(np.concatenate([colors.mean(axis=0), colors.std(axis=0)]))
            classes.append(label)
    descriptors, classes = np.stack(descriptors), np.array(classes)
    distances = np.linalg.norm(descriptors[:, None] - descriptors, axis=-1)
    np.fill_diagonal(distances, np.inf)
    neighbors = classes[distances.argsort(axis=1)[:, :5]]
    votes = (neighbors[..., None] == np.arange(1 + len(CLASSES))).sum(axis=1).argmax(axis=1)
    accuracy = (votes == classes).mean()
    assert accuracy < 1.5 / (len(CLASSES) - 1), accuracy  # chance is 1 in the number of kinds


def test_masks_are_exact() -> None:
    """The steps between two labels lie on steps of the image: fewer of them do once the mask is a pixel off."""
    offsets = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
    steps = np.zeros(len(offsets))
    for index in range(60):
        image, labels = scene((8, index), (128, 128))
        for i, offset in enumerate(offsets):
            shifted = np.roll(labels, offset, axis=(0, 1))[2:-2, 2:-2]
            inner = image[2:-2, 2:-2].astype(int)
            across, down = np.abs(np.diff(inner, axis=1)).sum(-1), np.abs(np.diff(inner, axis=0)).sum(-1)
            steps[i] += across[np.diff(shifted, axis=1) != 0].mean() + down[np.diff(shifted, axis=0) != 0].mean()
    assert steps[0] > 1.3 * steps[1:].max(), steps / steps[0]
