"""This process as one of several for a run: it joins the others, has a device of its own, and agrees with them."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch

from selfpatch import distributed
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.config import PretrainConfig
from selfpatch.config.io import differences, to_dict
from selfpatch.config.processes import LAUNCHER, Place, find_place
from selfpatch.config.run import RunConfig
from selfpatch.data.source import ImageSource
from selfpatch.distributed import from_rank_0, rank, together, world_size
from selfpatch.errors import RunFailedError, UserError


@contextlib.contextmanager
def joined_run(config: RunConfig) -> Iterator[torch.device]:
    """Be one of the processes that the launcher started, if it started several; gives this process's device.

    Rank 0 alone prints inside.

    Raises:
        UserError: there is no such device, or the other processes cannot be met.
    """
    place = None if distributed.is_initialized() else find_place()  # Ray and others join before they call
    if place is None and distributed.world_size() == 1:
        yield find_device(config.device)
        return
    if place is not None:
        _join(place, config)
    try:
        # The others' prints would be the same once more.
        with contextlib.nullcontext() if distributed.is_main() else _no_output(), distributed.together():
            device = _own_device(config.device, place)
        with contextlib.nullcontext() if distributed.is_main() else _no_output():
            yield device
    except RuntimeError as error:
        if not distributed.lost_contact(error):
            raise
        raise RunFailedError(
            f"rank {rank()} has no answer from another process: it has ended, and said why, or did not come to the "
            f"same step within {config.rank_timeout_s} s (run.rank-timeout-s): stacks that were printed tell where "
            "each was. The same command goes on from the last checkpoint "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        if place is not None:
            distributed.stop()


def _join(place: Place, config: RunConfig) -> None:
    if LAUNCHER in os.environ:
        threading.Thread(target=_stop_without_launcher, args=(int(os.environ[LAUNCHER]),), daemon=True).start()
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise UserError(
            f"{place.world_size} processes were started, and this torch is built without torch.distributed and gloo; "
            "install a build that has them, or start one process"
        )
    if on_gpu and not torch.distributed.is_nccl_available():
        raise UserError(
            "several GPUs talk by NCCL, and this torch is built without; install a build that has it, use one GPU, or "
            "run.device cpu"
        )
    try:
        distributed.start(
            rank=place.rank,
            world_size=place.world_size,
            init_method=place.init_method,
            device=torch.device("cuda" if on_gpu else "cpu"),
            timeout=timedelta(seconds=config.rank_timeout_s),
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = "MASTER_ADDR and MASTER_PORT" if place.init_method == "env://" else place.init_method
        raise UserError(
            f"rank {place.rank} did not meet the other {place.world_size - 1} processes at {where} within "
            f"{config.rank_timeout_s} s ({' '.join(str(error).split())[:300]}). See that all of them were started, "
            "that the first one's machine can be reached, and that no other program has its port"
        ) from error


def _own_device(name: str, place: Place | None) -> torch.device:
    """The GPU of this process, by its number on this machine; or the CPU, which all share."""
    if ":" in name:
        raise UserError(
            f"run.device is {name}, and {distributed.world_size()} processes need a device each; give the kind alone "
            "(run.device cuda), and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    device = find_device(name)
    if device.type == "mps":
        raise UserError("several processes cannot share a Mac's GPU; start one process, or use run.device cpu")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    local_rank = place.local_rank if place else distributed.rank() % count
    if place is not None and place.own_device and count == 1:
        local_rank = 0
    if local_rank >= count:
        raise UserError(
            f"there are {count} GPUs on this machine for {place.local_world_size if place else count} processes; start "
            f"{count} there, or use run.device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _stop_without_launcher(pipe: int) -> None:
    """Stop and save, as on a signal, when the process that started this one is gone."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def require_agreement(config: PretrainConfig, source: ImageSource) -> None:
    """
    Raises:
        UserError: this rank was started with other settings than rank 0, or sees other images.
    """
    settings, images = from_rank_0((to_dict(config), (len(source), source.fingerprint())))
    with together():
        if lines := differences(settings, to_dict(config)):
            raise UserError(
                f"rank {rank()} was started with other settings than rank 0 (rank 0 -> this one):\n  "
                + "\n  ".join(lines[:20])
            )
        if images != (len(source), source.fingerprint()):
            raise UserError(
                f"rank {rank()} on {socket.gethostname()} sees {len(source)} images, and rank 0 sees {images[0]}, or "
                "others; every machine must see the same folder"
            )


def require_equal_shares(config: PretrainConfig) -> None:
    """
    Raises:
        UserError: the batch is not divisible by the processes, and by the parts in which each computes its share.
    """
    batch_size, accumulate = config.optim.batch_size, config.optim.accumulate
    assert isinstance(batch_size, int)
    if batch_size % (share := world_size() * accumulate):
        parts = f", in {accumulate} parts each (optim.accumulate)" if accumulate > 1 else ""
        below = batch_size - batch_size % share
        nearest = f"{below} or " if below else ""
        raise UserError(
            f"a batch of {batch_size} images cannot be shared equally by {world_size()} processes{parts}; choose a "
            f"multiple of {share}, such as {nearest}{below + share} (optim.batch-size)"
        )
