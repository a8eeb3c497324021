"""`--devices N` and torchrun, as a user runs them: the same run, printed and written once, stopped and refused as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfpatch import cli
from selfpatch.config.io import write_yaml
from selfpatch.demo.scenes import write_scenes
from tests.small_models import tiny_config

ROOT = Path(__file__).parents[2]
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=12, num_train=3, num_val=2, size=48, seed=0)
    (folder / "images" / "broken.png").write_bytes(b"no image")
    write_yaml(tiny_config(), folder / "config.yaml")
    return folder


def arguments(scenes: Path, out: Path, *options: object) -> list[str]:
    given = ["pretrain", scenes / "images", out, "--config", scenes / "config.yaml", "--efficiency.num-workers", 0]
    return [str(argument) for argument in [*given, *options]]


def run(scenes: Path, out: Path, *options: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "selfpatch", *arguments(scenes, out, *options)]
    return subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=280)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lines_of(printed: str) -> list[str]:
    """But those that depend on how busy the machine is, or on how the run is shared out."""
    hints = ("no effect on shards", "wait for data", "decode fastest", "is slow: its own work")
    return [line for line in printed.splitlines() if not any(hint in line for hint in hints)]


@pytest.mark.slow
def test_the_same_run_on_two_processes_is_printed_and_written_once(scenes, tmp_path, capsys):
    options = ("--optim.steps", 4, "--evaluate.data", scenes / "ade20k", "--evaluate.every-steps", 2)
    assert cli.main(arguments(scenes, tmp_path / "one", *options)) == 0
    printed = lines_of(capsys.readouterr().out)
    ddp = run(scenes, tmp_path / "ddp", *options, "--devices", 2)
    fsdp2 = run(scenes, tmp_path / "fsdp2", *options, "--devices", 2, "--efficiency.parallel", "fsdp2")
    for kind, result in {"ddp": ddp, "fsdp2": fsdp2}.items():
        assert (result.returncode, result.stderr) == (0, "")
        assert len(lines_of(result.stdout)) == len(printed)
        assert "4 per step (2 in each of 2 processes)" in result.stdout
        for line, expected in zip(metrics(tmp_path / kind), metrics(tmp_path / "one"), strict=True):
            clock = {"images_per_second", "data_wait", "memory_mb", "slowest_rank", "slowest_rank_ratio"}
            assert line == pytest.approx(expected, rel=1e-3, abs=1e-4) or {
                name: value for name, value in line.items() if name not in clock
            } == pytest.approx(
                {name: value for name, value in expected.items() if name not in clock}, rel=1e-3, abs=1e-4
            )
        files = {path.relative_to(tmp_path / kind) for path in (tmp_path / kind).rglob("*") if path.is_file()}
        assert files == {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()}
        for name, tensor in load_file(tmp_path / "one" / "backbone.safetensors").items():
            torch.testing.assert_close(
                load_file(tmp_path / kind / "backbone.safetensors")[name], tensor, atol=1e-4, rtol=0
            )


@pytest.mark.slow
def test_a_signal_stops_all_at_one_step_and_the_run_goes_on_alone(scenes, tmp_path):
    out = tmp_path / "out"
    options = ("--optim.steps", 400, "--run.log-every", 1)
    command = [sys.executable, "-m", "selfpatch", *arguments(scenes, out, *options, "--devices", 2)]
    process = subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 250
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR2)
    printed, _ = process.communicate(timeout=250)
    assert process.returncode == 128 + signal.SIGUSR2
    steps = len(metrics(out))
    assert f"stopped after {steps} of 400 steps, saved" in printed
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    again = run(scenes, out, *options, "--run.stop-at-step", steps + 1)
    assert again.returncode == 0, again.stderr
    assert f"going on from {out}/checkpoints/step-{steps:08d}" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--optim.batch-size", 6, "--devices", 4),
            "a batch of 6 images cannot be shared equally by 4 processes; choose a",
        ),
        (("--optim.accumulate", 4, "--devices", 2), "in 4 parts each (optim.accumulate); choose a multiple of 8"),
        (("--run.device", "cuda:1", "--devices", 2), "run.device is cuda:1, and 2 processes need a device each"),
    ],
)
def test_what_ranks_find_is_refused_once(scenes, tmp_path, options, says):
    if "cuda:1" in options and torch.cuda.is_available():
        pytest.skip("counts GPUs first")
    result = run(scenes, tmp_path / "out", *options)
    assert result.returncode == 2
    assert says.replace("run.device is cuda:1, and 2 processes need a device each", "--devices is 2") in result.stderr
    assert result.stderr.count("selfpatch: ") == 1
    assert not (tmp_path / "out").exists()


def test_mistakes_are_refused_before_processes_start(scenes, tmp_path, capsys, monkeypatch):
    for devices, says in (
        (0, "--devices is 0; it must be 1 or more"),
        (100_000, "--devices is 100000, and here are no GPU"),
    ):
        if devices > 1 and torch.cuda.is_available():
            continue
        assert cli.main(arguments(scenes, tmp_path / "out", "--devices", devices)) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(arguments(scenes, tmp_path / "out")) == 2
    assert "MASTER_ADDR and MASTER_PORT" in capsys.readouterr().err
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    assert cli.main(arguments(scenes, tmp_path / "out")) == 2
    assert "built without torch.distributed and gloo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rank_is_killed_and_torchrun_starts_the_run_again(scenes, tmp_path):
    """The weights and every line of the log are those of an unbroken run."""
    options = ("--optim.steps", 12, "--run.save-every", 3, "--run.log-every", 1)
    unbroken = run(scenes, tmp_path / "unbroken", *options, "--devices", 2)
    assert unbroken.returncode == 0, unbroken.stderr
    out = tmp_path / "out"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    command = [sys.executable, *torchrun, "-m", "selfpatch", *arguments(scenes, out, *options)]
    agent = subprocess.Popen(command, env=ENVIRON, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 200
        while not (out / "checkpoints" / "step-00000003").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        os.kill(rank_1_of(agent.pid), signal.SIGKILL)
        assert agent.wait(timeout=250) == 0
    finally:
        agent.terminate()
        agent.wait()
    last = Path("checkpoints") / "step-00000012"
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected = load_file(tmp_path / "unbroken" / last / name)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in load_file(out / last / name).items())
    assert [line["step"] for line in metrics(out)] == list(range(1, 13))


def rank_1_of(agent: int) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            environ = (process / "environ").read_bytes().split(b"\0") if parent == agent else []
        except OSError:
            continue
        if b"RANK=1" in environ:
            return int(process.name)
    raise AssertionError("rank 1 is not there")
