"""Starts the processes of a run on this machine, for `--devices N`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from selfpatch.commands.run_setup.hardware import num_cores
from selfpatch.config.processes import LAUNCHER, RENDEZVOUS
from selfpatch.errors import UserError
from selfpatch.output.terminal import say
from selfpatch.training.stop_signal import StopSignal

# Seconds that the other processes have, after one failed, to end by themselves, and then to obey a signal.
GRACE_SECONDS = 15.0
# Without GPUs, processes for every core; more only wait for each other.
PROCESSES_PER_CORE = 4


def launch(arguments: Sequence[str], num_processes: int, device: str) -> int:
    """Run `selfpatch ARGUMENTS` as so many processes on this machine; returns the exit code.

    Signals are passed on to all of them, which torchrun does with some and then gives 30 s to save; the exit code is
    that of the process that failed. For restarts after a failure there is torchrun.

    Raises:
        UserError: there are fewer devices.
    """
    _require_devices(num_processes, device)
    with tempfile.TemporaryDirectory() as folder:
        alive, closed_by_us = os.pipe()
        common = os.environ | {
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            RENDEZVOUS: f"file://{folder}/rendezvous",
            LAUNCHER: str(alive),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(num_cores() // num_processes, 1))),
            # Names of this machine need not be known to any server.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo"),
        }
        command = [sys.executable, "-m", "selfpatch", *arguments]
        processes = []
        try:
            for rank in range(num_processes):
                environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In sessions of their own: Ctrl-C reaches them once, through us.
                processes.append(subprocess.Popen(command, env=environment, pass_fds=[alive], start_new_session=True))
            os.close(alive)
            return _supervise(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(closed_by_us)


def _require_devices(num_processes: int, device: str) -> None:
    num_gpus = torch.cuda.device_count()
    if device.startswith("cuda") or (device == "auto" and num_gpus):
        if num_processes > num_gpus:
            raise UserError(
                f"--devices is {num_processes}, and there are {num_gpus} GPUs here; give at most so many, or "
                "--run.device cpu. Several machines are started by torchrun or srun"
            )
    elif num_processes > (most := PROCESSES_PER_CORE * num_cores()):
        raise UserError(
            f"--devices is {num_processes}, and here are no GPU and {num_cores()} CPU cores; give at most {most}: "
            "more processes only wait for each other"
        )


def _supervise(processes: list["subprocess.Popen[bytes]"]) -> int:
    """Pass signals on and wait for all; the exit code of the first that failed, or of a stop that all agreed on."""
    stopping = False

    def forward(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in StopSignal.SIGNALS}
    first_failure, code = None, 0
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.05)
            ended = [(rank, process.returncode) for rank, process in enumerate(processes) if process.returncode]
            if ended and first_failure is None:
                first_failure, (rank, code) = time.monotonic(), ended[0]
                if code < 0:
                    name = signal.Signals(-code).name
                    say(f"rank {rank} was ended by {name}; the same command goes on from the last checkpoint")
            # Those that stop on a signal wait for rank 0, which saves.
            if first_failure is not None and not (stopping and code > 128):
                waited = time.monotonic() - first_failure
                for rank, process in enumerate(processes) if waited > GRACE_SECONDS else ():
                    if process.poll() is not None:
                        continue
                    if waited > 2 * GRACE_SECONDS:
                        say(f"rank {rank} (process {process.pid}) does not end, and is killed")
                        process.kill()
                        process.wait()
                    else:
                        process.terminate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [process.returncode for process in processes if process.returncode]
    code = code or (codes[0] if codes else 0)
    return 1 if code < 0 else code
