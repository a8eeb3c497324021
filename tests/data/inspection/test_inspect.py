"""What is found of one file, of many, and the second time."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.inspection import inspect_all as module
from selfpatch.data.inspection.inspect import ALL_DAMAGE, inspect_image, perceptual_hashes
from selfpatch.data.inspection.inspect_all import InspectionCache, inspect_all
from selfpatch.data.inspection.near_duplicates import MAX_DISTANCE, near_duplicates
from selfpatch.errors import UserError
from tests.data.augmentation.photographs import photograph


def gray_of(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=2, dtype=np.float32) / 255


@pytest.mark.parametrize(
    ("name", "data", "damage"),
    [
        ("a.jpg", b"", "empty"),
        ("a.jpg", b"words", "no image"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged"),
        ("a.npy", "wide", "unsupported"),
        ("a.npy", "cut", "cut short"),
        ("a.jpg", "cut", "cut short"),
        ("gone.jpg", None, "cannot be opened"),
    ],
)
def test_kinds_of_damage(tmp_path, name, data, damage):
    path = tmp_path / name
    if data == "wide":
        np.save(path, np.zeros((40, 50, 60), np.uint8))
    elif data == "cut":
        if name.endswith(".npy"):
            np.save(path, np.zeros((40, 50, 9), np.uint16))
        else:
            Image.fromarray(photograph(0)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif data is not None:
        path.write_bytes(data)
    found = inspect_image(path)
    assert found.problem
    assert (found.damage, found.damage in ALL_DAMAGE) == (damage, True)


def test_numbers_of_8_and_of_16_bits(tmp_path):
    rgb = photograph(0, 60, 80)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    found = inspect_image(tmp_path / "a.png")
    assert (found.size, found.format, found.kind, found.num_channels, found.num_bits) == (
        (60, 80),
        "PNG",
        "color",
        3,
        8,
    )
    np.testing.assert_allclose(found.mean, rgb.mean(axis=(0, 1)) / 255, atol=1e-6)
    np.testing.assert_allclose(found.std, rgb.std(axis=(0, 1)) / 255, atol=1e-6)
    deep = np.random.default_rng(0).integers(0, 2**16, (9, 60, 80), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", deep)
    found = inspect_image(tmp_path / "b.tif")
    assert (found.size, found.format, found.kind, found.num_channels) == ((60, 80), "TIFF", "16-bit, 9 channels", 9)
    np.testing.assert_allclose(found.mean, deep.mean(axis=(1, 2)) / 65535, atol=1e-5)
    np.testing.assert_allclose(found.std, deep.std(axis=(1, 2)) / 65535, atol=1e-5)


def test_light_and_sharpness_order_images_as_eyes_do(tmp_path):
    sharp = photograph(3)
    versions = {
        "sharp": sharp,
        "small": cv2.resize(sharp, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
        "dim": (sharp * 0.3).astype(np.uint8),
        "blurred": cv2.GaussianBlur(sharp, (0, 0), 6),
    }
    found = {}
    for name, image in versions.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        found[name] = inspect_image(tmp_path / f"{name}.png")
    assert found["dim"].brightness < 0.4 * found["sharp"].brightness
    assert found["blurred"].sharpness < found["sharp"].sharpness - 2
    for same in ("small", "dim"):
        assert abs(found[same].sharpness - found["sharp"].sharpness) < 1


def test_edited_copies_are_alike_and_others_are_not():
    originals = [photograph(seed) for seed in range(12)]
    edited = [
        cv2.resize(originals[0], (250, 190), interpolation=cv2.INTER_AREA),
        cv2.imdecode(cv2.imencode(".jpg", originals[1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR),
        np.clip(originals[2] * 0.8 + 20, 0, 255).astype(np.uint8),
        originals[3][4:-4, 4:-4],
    ]
    hashes = [perceptual_hashes(gray_of(image)) for image in [*originals, *edited]]
    groups = near_duplicates(hashes)
    assert groups == [[0, 12], [1, 13], [2, 14], [3, 15]]


def test_all_pairs_within_the_distance_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    hashes = [tuple(int(n) for n in rng.integers(0, 2**63, 2)) for _ in range(60)]
    for index in range(40):  # copies with a few bits turned, at random places
        bits = rng.integers(0, 9, 2)
        turned = [sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)) for count in bits]
        hashes.append(tuple(value ^ turn for value, turn in zip(hashes[index], turned, strict=True)))
    parent = list(range(len(hashes)))
    for i, one in enumerate(hashes):
        for j, other in enumerate(hashes[:i]):
            if all((a ^ b).bit_count() <= MAX_DISTANCE for a, b in zip(one, other, strict=True)):
                parent = [parent[j] if group == parent[i] else group for group in parent]
    slow = sorted(group for root in set(parent) if len(group := [i for i, p in enumerate(parent) if p == root]) > 1)
    assert len(slow) > 5
    assert near_duplicates(hashes) == slow
    assert near_duplicates([]) == near_duplicates(hashes[:1]) == []
    assert near_duplicates([(5, 5)] * 4) == [[0, 1, 2, 3]]


def test_processes_find_what_threads_find(tmp_path, monkeypatch):
    for seed in range(6):
        Image.fromarray(photograph(seed, 40, 50)).save(tmp_path / f"{seed}.png")
    folder = ImageFolder(tmp_path)
    by_threads = list(inspect_all(folder, num_processes=2))
    monkeypatch.setattr(module, "FEW_IMAGES", 2)
    assert list(inspect_all(folder, num_processes=2)) == by_threads


def test_a_second_call_reads_what_is_new_or_changed(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(photograph(seed, 40, 50)).save(folder / f"{seed}.png")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    odd.write_text("no picture")
    seen = []
    inspect_one = module.inspect_image
    monkeypatch.setattr(
        module, "inspect_image", lambda place, pages: seen.append(place.path.name) or inspect_one(place, pages)
    )

    def call() -> list:
        seen.clear()
        cache = InspectionCache(tmp_path / "cache.jsonl")
        found = list(inspect_all(ImageFolder(folder), num_processes=1, cache=cache))
        cache.close()
        return found

    first = call()
    assert len(seen) == 5
    assert call() == first
    assert seen == []
    Image.fromarray(photograph(9, 41, 50)).save(folder / "2.png")
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('["half a li')  # of a process that was killed
    third = call()
    assert seen == ["2.png"]
    assert third[2].size == (41, 50)
    assert call() == third
    assert seen == []


def test_a_file_of_something_else_is_no_cache(tmp_path):
    (tmp_path / "list.csv").write_text("path\n1.png\n")
    with pytest.raises(UserError, match="is no file of selfpatch check"):
        InspectionCache(tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_text() == "path\n1.png\n"
    with pytest.raises(UserError, match="cannot keep what is found"):
        InspectionCache(tmp_path / "none" / "cache")
