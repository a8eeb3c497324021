"""Whose mistake it is decides the exit code: 2 a user's, 1 a run that failed or a fault of ours, 130 Ctrl-C."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.errors import RunFailedError, StoppedError, UserError, working
from selfpatch.output import checkpoint

DISK_FULL = OSError(errno.ENOSPC, "No space left on device", "out/file")


def failing(error: BaseException, monkeypatch) -> None:
    """`selfpatch demo` raises `error`."""

    def fail(**arguments):
        raise error

    monkeypatch.setattr("selfpatch.demo.tour.demo", fail)


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (UserError("seed is -1"), 2, ["seed is -1"]),
        (PermissionError(errno.EACCES, "Permission denied", "images/"), 2, ["images/", "Permission denied"]),
        (RunFailedError("out/file: No space left"), 1, ["out/file: No space left"]),
        (RuntimeError("CUDA out of memory"), 1, ["CUDA out of memory", "--traceback"]),
        (ValueError("zip() argument 2 is longer"), 1, ["internal error", "ValueError", "zip()", "--traceback"]),
        (KeyError("method"), 1, ["internal error", "KeyError", "method", "--traceback"]),
        (AssertionError(), 1, ["internal error", "AssertionError", "--traceback"]),
        (KeyboardInterrupt(), 130, []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_and_one_line(error, code, parts, monkeypatch, capsys):
    failing(error, monkeypatch)
    assert cli.main(["demo"]) == code
    shown = capsys.readouterr().err
    assert [part for part in parts if part not in shown] == []
    assert len(shown.splitlines()) == (1 if parts else 0)
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            cli.main(["demo", "--traceback"])


def test_a_signal_is_128_and_its_number(monkeypatch, capsys):
    failing(StoppedError(15, "stopped after 3 of 5 steps"), monkeypatch)
    assert cli.main(["demo"]) == 128 + 15
    assert "3 of 5" in capsys.readouterr().out

    class Result:
        stopped_by = 10

    monkeypatch.setattr("selfpatch.demo.tour.demo", lambda **arguments: Result())
    assert cli.main(["demo"]) == 138


def test_work_that_has_begun_is_a_failed_run():
    with pytest.raises(RunFailedError, match="^out/file: No space left on device$"), working():
        raise DISK_FULL
    with pytest.raises(RunFailedError, match="^no room$"), working():
        raise OSError("no room")
    with pytest.raises(RunFailedError, match="^damaged$"), working(EOFError):
        raise EOFError("damaged")
    with pytest.raises(UserError), working():
        raise UserError("stays")
    with pytest.raises(BrokenPipeError), working():
        raise BrokenPipeError


def test_a_disk_that_fills_while_it_trains_is_no_mistake_of_the_user(pretrain, tmp_path, monkeypatch, capsys):
    def full(*arguments, **settings):
        raise DISK_FULL

    monkeypatch.setattr(checkpoint, "save", full)
    assert pretrain(tmp_path / "out", "--optim.steps", "1") == 1
    assert "out/file: No space left on device" in capsys.readouterr().err


def test_a_disk_that_fills_as_a_run_ends_is_no_mistake_of_the_user(pretrain, tmp_path, monkeypatch, capsys):
    def full(*arguments, **settings):
        raise DISK_FULL

    monkeypatch.setattr("selfpatch.commands.callbacks.save_run.export_timm", full)
    assert pretrain(tmp_path / "out", "--optim.steps", "1") == 1
    assert "out/file: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("num_lost", [1, 4])
def test_images_that_are_lost_while_it_trains_are_a_failed_run(
    num_lost, scenes, pretrain, tmp_path, monkeypatch, capsys
):
    """One of four is more than a tenth; where all are lost, no other can take their places."""
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted((scenes / "images").iterdir())[:4]):
        shutil.copy(path, images / f"{i}{path.suffix}")
    monkeypatch.setattr("selfpatch.commands.pretrain.print_summary", lambda *_, **__: lose(images, num_lost))
    assert pretrain(tmp_path / "out", "--optim.steps", 1, "--run.max-bad-fraction", 0.1, images=images) == 1
    shown = capsys.readouterr().err
    assert "internal error" not in shown
    assert "run.max-bad-fraction" in shown or "in a row" in shown


def lose(images: Path, count: int) -> None:
    for path in sorted(images.iterdir())[:count]:
        path.write_bytes(b"")


def test_a_folder_that_cannot_be_made_is_known_before_it_trains(pretrain, tmp_path, monkeypatch, capsys):
    def refuse(self, **arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert pretrain(tmp_path / "out", "--optim.steps", "1") == 2
    assert str(tmp_path / "out") in capsys.readouterr().err


@pytest.mark.parametrize("command", ["--help", "pretrain --help"])
def test_output_that_nobody_reads_is_no_mistake(command):
    line = f"{sys.executable} -u -m selfpatch {command} | head -c 10; echo; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] in ("0", "141")
    assert done.stderr == ""


def test_leaving_waits_for_threads_and_exit_handlers_and_keeps_what_was_printed():
    program = """
import atexit, threading, time
from selfpatch.cli.main import leave
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
print("printed")
leave(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (7, ["printed", "thread", "handler"])
