"""A folder with one of everything: what `selfpatch check` counts, lists and advises."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.cli import main
from selfpatch.commands.check import CROP, check, check_all
from selfpatch.data.image_folder import ImageFolder


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
    assert report.kinds == {"color": 2, "gray": 1, "with transparency": 1, "16-bit grey": 1, "palette": 1}
    assert [image.path.name for image in report.bad] == ["cut.jpg", "words.png"]
    assert "not a JPEG" in report.bad[1].problem
    assert report.copies == [(folder / "copy.jpg", folder / "colour.jpg")]
    assert report.small_share == pytest.approx(1 / 6)
    assert report.num_links == 1


def test_words(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["check", str(folder), "--out", str(folder.parent / "bad.txt")]) == 0
    said = capsys.readouterr().out
    advice = [line for line in said.splitlines() if line.startswith("- ")]
    assert advice[0].startswith(f"- 2 of 8 files cannot be read ({folder / 'cut.jpg'}: ")
    assert "stops above 20%" in advice[0]
    assert advice[1].startswith(f"- 1 files are copies ({folder / 'copy.jpg'} of {folder / 'colour.jpg'}")
    assert advice[2].startswith(
        f"- 17% are smaller than a global crop of {CROP} px and would be enlarged; --crops.glob"
    )
    assert advice[2].endswith("--crops.global-size 144 fits nine of ten")
    assert "16-bit" in advice[3]
    assert "links to folders" in advice[4]
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


def test_several_processes_say_the_same(tmp_path, monkeypatch):
    for i in range(200):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "100.png").write_text("no picture")
    folder = ImageFolder(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    alone = list(check_all(folder))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert list(check_all(folder)) == alone
