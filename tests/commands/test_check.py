"""A folder with one of everything: what `selfpatch check` counts, lists and advises."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from selfpatch.cli import main
from selfpatch.commands.check import check
from selfpatch.commands.check_report import CROP
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.inspection.inspect_all import inspect_all
from tests.data.augmentation.photographs import photograph
from tests.data.nine_channels import nine_channels, write_nine_channels


def noise(rows: int, columns: int, channels: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), np.uint8).squeeze()


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(noise(240, 300, 3, seed=0)).save(folder / "colour.jpg")
    Image.fromarray(noise(100, 80, 1, seed=1)).save(folder / "grey.png")
    Image.fromarray(noise(300, 230, 4, seed=2)).save(folder / "deep" / "transparent.png")
    Image.fromarray(np.arange(240 * 240, dtype=np.uint16).reshape(240, 240)).save(folder / "sixteen.png")
    Image.fromarray(noise(240, 240, 3, seed=3)).convert("P").save(folder / "palette.png")
    (folder / "copy.jpg").write_bytes((folder / "colour.jpg").read_bytes())
    (folder / "cut.jpg").write_bytes((folder / "colour.jpg").read_bytes()[:3000])
    (folder / "words.png").write_text("no picture")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    return folder


def test_counts(folder):
    report = check(folder)
    assert {image.path.name: image.size for image in report.good} == {
        "colour.jpg": (240, 300), "copy.jpg": (240, 300), "grey.png": (100, 80), "transparent.png": (300, 230),
        "sixteen.png": (240, 240), "palette.png": (240, 240),
    }  # fmt: skip
    assert report.kinds == {"color": 2, "gray": 1, "with transparency": 1, "16-bit gray": 1, "palette": 1}
    assert [image.path.name for image in report.bad] == ["cut.jpg", "words.png"]
    assert "not a JPEG" in report.bad[1].problem
    assert [(copy.path, first.path) for copy, first in report.copies] == [(folder / "copy.jpg", folder / "colour.jpg")]
    assert report.small_fraction == pytest.approx(1 / 6)
    assert report.num_links == 1
    assert report.formats == {"PNG": 4, "JPEG": 2}


def test_words(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["check", str(folder), "--out", str(folder.parent / "bad.txt")]) == 0
    said = capsys.readouterr().out
    advice = [line for line in said.splitlines() if line.startswith("- ")]
    assert advice[0].startswith(f"- 2 of 8 files cannot be read ({folder / 'cut.jpg'}: ")
    assert "stops above 20%" in advice[0]
    assert advice[1].startswith(f"- 1 file is a copy ({folder / 'copy.jpg'} of {folder / 'colour.jpg'}")
    assert advice[2].startswith(
        f"- 17% are smaller than a global crop of {CROP} px and would be enlarged; --crops.glob"
    )
    assert advice[2].endswith("--crops.global-size 144 fits nine of ten")
    assert (
        "pretraining refuses these images as they are: the images differ in their number of channels: 5 of 3"
        in advice[3]
    )
    assert advice[4] == "- 1 link to a folder was not followed: give the targets, or put the files there"
    assert advice[5] == f"- 6 images: selfpatch pretrain {folder} RUN --recipe dino-selfpatch-small"
    listed = (folder.parent / "bad.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(folder / "cut.jpg"), str(folder / "words.png")]


def test_a_clean_folder_gets_the_command_and_no_more(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(noise(CROP, CROP, 3, seed=i)).save(tmp_path / f"{i}.png")
    check(tmp_path)
    advice = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert len(advice) == 1


def test_nothing_but_damaged_files(tmp_path, capsys):
    (tmp_path / "words.png").write_text("no picture")
    assert check(tmp_path).good == []
    assert "1 of 1 files cannot be read" in capsys.readouterr().out


def test_list_is_refused_before_the_images_are_read(folder, tmp_path):
    for out in (tmp_path / "nope" / "bad.txt", tmp_path):
        with pytest.raises(ValueError, match="cannot be a file for the list"):
            check(folder, out=out)


def test_formats_by_content_files_left_out_and_files_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for i, (name, format_) in enumerate(
        {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.bmp": "BMP", "e.gif": "GIF", "f.jpg": "PNG"}.items()
    ):
        Image.fromarray(noise(CROP, CROP, 3, seed=i)).save(tmp_path / name, format=format_)
    for name in ("g.heic", "h.heic", "notes.txt"):
        (tmp_path / name).touch()
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    data[data.index(b"JFIF") + 5] = 2
    (tmp_path / "z.jpg").write_bytes(data)
    report = check(tmp_path)
    assert report.formats == {"JPEG": 4, "BMP": 1, "GIF": 1, "PNG": 1}
    assert (len(report.bad), report.left_out) == (0, {".heic": 2, ".txt": 1})
    assert [image.path.name for image in report.warned] == ["z.jpg"]
    said = capsys.readouterr().out
    assert "3 files were left out: 2 .heic, 1 .txt" in said
    assert f"1 file is read although the decoder warns ({tmp_path / 'z.jpg'}: Warning: unknown JFIF revision" in said


def test_names_that_terminals_obey_are_escaped(tmp_path, capsys):
    """So are those that are no UTF-8, or no single line; the folder's own name too."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/[red]\xff\x1b[2J"))
    folder.mkdir()
    for name in (b"\x1b]0;title\x07.png", b"two\nlines.png", b"\xfe.png", b"[bold].png"):
        (folder / os.fsdecode(name)).write_text("no picture")
    Image.fromarray(noise(CROP, CROP, 3, seed=0)).save(folder / "good.png")
    assert main(["check", str(folder), "--out", str(tmp_path / "bad.txt")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said
    assert r"[red]\xff\x1b[2J" in said
    lines = (tmp_path / "bad.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("\t")[0].rpartition("/")[2] for line in lines]
    assert sorted(names) == sorted([r"\x1b]0;title\x07.png", r"two\nlines.png", r"\xfe.png", "[bold].png"])


def test_more_images_than_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("selfpatch.data.inspection.inspect_all.IMAGES_AT_ONCE", 8)
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "10.png").write_text("no picture")
    folder = ImageFolder(tmp_path)
    checked = list(inspect_all(folder, num_processes=2))
    assert [image.path for image in checked] == [folder.path(i) for i in range(20)]
    assert [bool(image.problem) for image in checked] == [i == 10 for i in range(20)]


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def rich_folder(tmp_path) -> Path:
    """30 photographs; an edited copy, a dark, a blurred and an empty one; two that a labeled set has."""
    folder = tmp_path / "images"
    for seed in range(30):
        save(folder / f"{seed:02}.png", photograph(seed, 240, 256))
    save(folder / "edited.jpg", cv2.resize(photograph(4, 240, 256), (200, 190), interpolation=cv2.INTER_AREA))
    save(folder / "night.png", (photograph(40, 240, 256) * 0.06).astype(np.uint8))
    save(folder / "hazy.png", cv2.GaussianBlur(photograph(41, 240, 256), (0, 0), 9))
    save(folder / "blank.png", np.full((240, 256, 3), 77, np.uint8))
    labeled = tmp_path / "labeled"
    for split, seeds in (("training", (100, 7)), ("validation", (101, 8))):
        for seed in seeds:
            save(labeled / "images" / split / f"x{seed}.png", photograph(seed, 240, 256))
            save(labeled / "annotations" / split / f"x{seed}.png", np.ones((240, 256), np.uint8))
    save(labeled / "images" / "validation" / "x9.jpg", photograph(9, 240, 256))  # compressed: alike, not the same
    save(labeled / "annotations" / "validation" / "x9.png", np.ones((240, 256), np.uint8))
    return folder


def test_likeness_leaks_and_outliers_in_words_and_as_json(rich_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    labels = rich_folder.parent / "labeled"
    command = ["check", str(rich_folder), "--labels", str(labels), "--cache", str(rich_folder.parent / "cache.jsonl")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {kind: [Path(name).name for name in images] for kind, images in found["outliers"].items()}
    assert names.pop("blurred")[0] == "hazy.png"
    assert names == {"dark": ["night.png"], "bright": [], "one color": ["blank.png"]}
    assert [[Path(name).name for name in group] for group in found["near_duplicates"]] == [["04.png", "edited.jpg"]]
    leaks = {
        split: {(Path(leak["name"]).name, Path(leak["labeled"]).name, leak["exact"]) for leak in of_split}
        for split, of_split in found["leaks"].items()
    }
    assert leaks == {
        "training": {("07.png", "x7.png", True)},
        "validation": {("08.png", "x8.png", True), ("09.png", "x9.jpg", False)},
    }
    assert (found["channels"], found["bit_depths"], found["num_images"]) == ({"3": 34}, {"8 bits": 34}, 34)
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in sorted(rich_folder.iterdir())]
    np.testing.assert_allclose(found["mean"], np.concatenate(pixels).mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found["std"], np.concatenate(pixels).std(axis=0), atol=1e-4)
    assert main(command) == 0
    said = capsys.readouterr().out
    for words in (
        "2 images are in the validation split of the labeled set, or look like one of it",
        "2 images in 1 group look alike",
        "worth a look: 1 far darker than the others",
        "blurred (",
        "1 of one color",
        "mean per channel",
    ):
        assert words in said


def test_channels_and_settings_that_follow(tmp_path, capsys):
    write_nine_channels(tmp_path, num_unlabeled=3)
    report = check(tmp_path / "images")
    assert report.channels == {9: 3}
    assert report.bit_depths == {"16 bits": 3}
    said = " ".join(capsys.readouterr().out.split())
    assert "pretraining will set backbone.num-channels to 9" in said
    assert "images.value-range to (0.0, 4095.0)" in said
    mean, _ = report.normalization
    pixels = np.stack([nine_channels(seed)[0] for seed in range(3)]) / 65535
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-5)


def test_damage_is_counted_by_kind(folder, capsys):
    (folder / "empty.jpg").touch()
    report = check(folder)
    assert report.damage == {"cut short": 1, "no image": 1, "empty": 1}


def test_labels_that_are_not_there(folder, capsys):
    assert main(["check", str(folder), "--labels", str(folder / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
