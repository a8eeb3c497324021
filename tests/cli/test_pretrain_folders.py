"""Folders of images and of a run that cannot be used, and images that a run warns of."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Images


def test_folder_missing(pretrain_refused, tmp_path):
    pretrain_refused(images=tmp_path / "nope" / "deeper", says=(tmp_path / "nope" / "deeper", f"(but {tmp_path}"))


def test_folder_is_a_file(pretrain_refused, scenes):
    pretrain_refused(images=scenes / "config.yaml", says=(scenes / "config.yaml", "is a file"))


def test_folder_empty(pretrain_refused, tmp_path):
    (tmp_path / "images").mkdir()
    pretrain_refused(images=tmp_path / "images", says=(tmp_path / "images", ".jpg", "no file"))
    (tmp_path / "images" / "notes.txt").touch()
    pretrain_refused(images=tmp_path / "images", says=("1 file", "1 .txt"))


def test_no_readable_image(pretrain_refused, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"no picture")
    pretrain_refused(images=tmp_path / "images", says=("none of 6", "0.jpg", "selfpatch check"))


def test_fewer_images_than_a_batch(pretrain_refused):
    pretrain_refused("--optim.batch-size", 13, says=("12 images", "13", "optim.batch-size"))


def test_image_smaller_than_a_crop_runs_and_warns_with_a_count(pretrain, tmp_path, capsys):
    """Two of four a step are small: shown once when it is first seen, and once at the end."""
    images = tmp_path / "images"
    images.mkdir()
    for i, side in enumerate((48, 20, 48, 20)):
        Image.fromarray(np.full((side, side, 3), 60 * i, np.uint8)).save(images / f"{i}.png")
    assert pretrain(tmp_path / "out", "--optim.steps", "3", images=images) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "smaller than a global crop" in line]
    assert ["2 of 4 images" in warnings[0], "6 of 12 images" in warnings[1]] == [True, True]
    assert len(warnings) == 2
    assert "(32 px)" in warnings[0]


def test_large_enough_images_bring_no_warning(pretrain, tmp_path, capsys):
    assert pretrain(tmp_path / "out", "--optim.steps", "2") == 0
    assert "warning" not in capsys.readouterr().out


# OUT


def test_out_of_another_run_shows_setting_by_setting(pretrain_refused, a_run):
    shown = pretrain_refused(
        "--optim.steps", 1, "--optim.lr", 0.5, "--crops.num-local", 3, out=a_run, says=(a_run, "new folder")
    )  # fmt: skip
    assert [line.strip() for line in shown.splitlines()[1:-1]] == ["crops.num_local: 2 -> 3", "optim.lr: 0.001 -> 0.5"]


def test_out_below_a_file(pretrain_refused, refused, scenes, finished_run, tmp_path):
    file = tmp_path / "file"
    file.touch()
    pretrain_refused(out=file / "run", says=(file / "run", f"{file} is a file"))
    pretrain_refused(out=file, says=(f"{file} is a file",))
    for command in (
        ["evaluate", finished_run, "--data", scenes / "ade20k", "--out", file / "scores"],
        ["visualize", finished_run, scenes / "images", file / "pictures"],
        ["embed", finished_run, scenes / "images", file / "vectors"],
        ["export", finished_run, file / "exported"],
        ["demo", file / "demo"],
    ):
        refused(command, f"{file} is a file", out=file)


def test_out_without_permission(pretrain_refused, tmp_path, monkeypatch):
    """Root may write anywhere, so the system's answer is made up."""
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "locked")
    pretrain_refused(out=tmp_path / "locked" / "run", says=(tmp_path / "locked", "not writable"))


def test_out_holds_other_files(pretrain_refused, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    pretrain_refused(out=tmp_path / "thesis", says=(tmp_path / "thesis", "config.yaml", "new or empty folder"))


def test_out_in_use_by_another_process(pretrain_refused, a_run):
    # Shared, so that only an exclusive lock, as a run must take, is refused.
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, a_run / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        pretrain_refused("--optim.steps", 1, out=a_run, says=(a_run, "in use by process"))
        other.stdin.close()
    with (a_run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # neither process holds it any more


def test_images_changed_since_the_checkpoint(pretrain_refused, scenes, a_run, tmp_path):
    images = Path(shutil.copytree(scenes / "images", tmp_path / "images"))
    next(images.iterdir()).unlink()
    says = (a_run, "12 then, 11 now")
    pretrain_refused("--optim.steps", 1, "--run.log-every", 7, images=images, out=a_run, says=says)


def test_demo_into_a_folder_with_other_files(refused, tmp_path):
    (tmp_path / "chapter.tex").write_text("precious")
    refused(["demo", tmp_path], tmp_path, "new or empty folder", out=tmp_path)
