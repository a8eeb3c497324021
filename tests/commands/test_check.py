"""A folder with one of everything: what `selfpatch check` counts, lists and advises."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.cli import main
from selfpatch.commands.check import check
from selfpatch.commands.check_report import CROP
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.inspection.inspect_all import inspect_all


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
