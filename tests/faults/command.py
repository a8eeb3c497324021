"""`selfpatch pretrain` in a process of its own, forked so that a fault is a Python function that runs in it first."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import selfpatch.commands.pretrain  # noqa: F401 so that every fork has it
from selfpatch import cli
from selfpatch.commands.callbacks import monitor
from selfpatch.config.io import write_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.output import checkpoint
from selfpatch.pretraining import train_step
from selfpatch.pretraining.student_teacher import StudentTeacher
from tests.small_models import tiny_config

FORK = multiprocessing.get_context("fork")
NUM_STEPS = 6
# Seconds that any process of these tests may take: a limit, not a pause.
LIMIT = 100.0
Fault = Callable[[], object]


class Command:
    """A process that runs the command line, in a session of its own, its output in a file."""

    def __init__(self, arguments: list[str], log: Path, fault: Fault | None, environ: Mapping[str, str]):
        self._log = log
        self._process = FORK.Process(target=_main, args=(arguments, log, fault, environ), daemon=False)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, text: str) -> None:
        """Until the process has printed this: lines are its ready-files."""
        give_up = time.monotonic() + LIMIT
        while text not in self.printed:
            assert self._process.exitcode is None and time.monotonic() < give_up, self.printed
            time.sleep(0.01)

    def wait(self, limit: float = LIMIT) -> int:
        """Exit code, as a shell has it for a signal negative."""
        self._process.join(limit)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {limit} s: {self.printed}")
        return code

    def kill(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        self._process.join(10)


def _main(arguments: list[str], log: Path, fault: Fault | None, environ: Mapping[str, str]) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(environ)
    code = 70
    try:
        torch.set_num_threads(1)
        if "--evaluate.every-steps" not in arguments:  # half of the time of so short a run
            monitor.visualize = monitor.draw_curves = lambda *_, **__: None
        if fault is not None:
            fault()
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        multiprocessing.util._exit_function()  # what an interpreter does at its end: workers are gone then
        sys.stdout and sys.stdout.flush()
        os._exit(code)


class Runs:
    """Commands of a test on made-up scenes; all are killed at its end."""

    def __init__(self, scenes: Path, folder: Path):
        self.scenes, self.folder, self.out = scenes, folder, folder / "out"
        self._commands: list[Command] = []

    def arguments(self, *options: object, out: Path | None = None, images: Path | None = None) -> list[str]:
        given = ["pretrain", images or self.scenes / "images", out or self.out]
        given += ["--config", self.scenes / "config.yaml", *options]
        return [str(argument) for argument in given]

    def start(
        self,
        *options: object,
        fault: Fault | None = None,
        environ: Mapping[str, str] | None = None,
        out: Path | None = None,
        images: Path | None = None,
    ) -> Command:
        log = self.folder / f"printed-{len(self._commands)}.txt"
        command = Command(self.arguments(*options, out=out, images=images), log, fault, environ or {})
        self._commands.append(command)
        return command

    def run(self, *options: object, code: int = 0, limit: float = LIMIT, **settings: Any) -> str:
        """Start, wait, and compare the exit code; returns what was printed."""
        command = self.start(*options, **settings)
        found = command.wait(limit)
        assert found == code, (found, command.printed)
        assert "Traceback" not in command.printed
        return command.printed

    def start_ranks(self, *options: object, faults: Mapping[int, Fault] | None = None, world_size: int = 2,
                    options_of: Mapping[int, tuple[object, ...]] | None = None) -> list[Command]:  # fmt: skip
        """So many ranks, as torchrun starts them; a fault in some."""
        port = free_port()
        common = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        return [
            self.start(
                *options,
                *(options_of or {}).get(rank, ()),
                fault=(faults or {}).get(rank),
                environ=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world_size)
        ]

    def kill(self) -> None:
        for command in self._commands:
            command.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_inputs(folder: Path) -> Path:
    """Thirteen scenes, four of them per step, and the settings of six steps that save every second one."""
    write_scenes(folder, num_unlabeled=13, num_train=3, num_val=2, size=48, seed=0)
    config = tiny_config()
    config = replace(
        config,
        optim=replace(config.optim, steps=NUM_STEPS),
        run=replace(config.run, save_every=2),
        efficiency=replace(config.efficiency, num_workers=0),
    )
    write_yaml(config, folder / "config.yaml")
    return folder


# Faults


def at_step(step: int, action: Callable[[], object], *, after: bool = False) -> Fault:
    """Do it when the gradients of this step are there, or when it has been applied."""

    def fault() -> None:
        apply_gradients = train_step.apply_gradients

        def with_fault(student_teacher, optimizer, loss, at, **settings):
            if at == step and not after:
                action()
            applied = apply_gradients(student_teacher, optimizer, loss, at, **settings)
            if at == step and after:
                action()
            return applied

        train_step.apply_gradients = with_fault

    return fault


def kill_self(number: int = signal.SIGKILL) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def losses(change: Callable[[int, torch.Tensor], torch.Tensor]) -> Fault:
    """Change what the loss of a step is, by its number, before its gradient is taken."""

    def fault() -> None:
        forward = StudentTeacher.forward

        def changed(self, views, step):
            loss, signals = forward(self, views, step)
            return change(step, loss), signals

        StudentTeacher.forward = changed

    return fault


def no_room(name: str) -> Fault:
    """A disk without room for files of tensors of this name: what is written to them goes to a device that is full."""

    def fault() -> None:
        from selfpatch.export import timm_file

        for module in (checkpoint, timm_file):
            save_file = module.save_file

            def full(tensors, path, *args, _save_file=save_file, **kwargs):
                if name in Path(path).name:
                    write_to_full_disk(Path(path))
                return _save_file(tensors, path, *args, **kwargs)

            module.save_file = full

    return fault


def write_to_full_disk(path: Path) -> None:
    """Half a file, and then the error of safetensors."""
    from safetensors import SafetensorError

    path.write_bytes(b"half")
    try:
        Path("/dev/full").write_bytes(b"x")
    except OSError as error:
        raise SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error 28)") from error


# What a run left


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_logged(out: Path) -> list[int]:
    return [line["step"] for line in metrics(out)]


def checkpoints(out: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints_in(out / "checkpoints")]


def assert_same_run(out: Path, unbroken: Path, num_steps: int = NUM_STEPS) -> None:
    """Weights, optimizer and every number of the log, none lost and none twice."""
    found, expected = (checkpoint.load_latest(folder / "checkpoints")[0] for folder in (out, unbroken))
    assert found is not None and expected is not None
    assert found.state["step"] == expected.state["step"] == num_steps
    for group, tensors in expected.tensors.items():
        different = [name for name, value in tensors.items() if not torch.equal(value, found.tensors[group][name])]
        assert found.tensors[group].keys() == tensors.keys() and not different
    clock = {"images_per_second", "data_wait", "memory_mb"}
    lines = [[{k: v for k, v in line.items() if k not in clock} for line in metrics(f)] for f in (out, unbroken)]
    assert lines[0] == lines[1]
    assert not list(out.glob(".config*")) and not list((out / "checkpoints").glob(".writing*"))


@contextmanager
def damaged(file: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(change(before))
    yield
    if file.exists():
        file.write_bytes(before)
