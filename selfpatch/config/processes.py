"""Which of several processes this one is, as its launcher says: torchrun's variables, or SLURM's. Imports no torch."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from selfpatch.errors import UserError

# Set by `--devices N` for the processes that it starts: a file to meet in, and the reading end of a pipe that closes
# when the process that started them is gone.
RENDEZVOUS, LAUNCHER = "SELFPATCH_RENDEZVOUS", "SELFPATCH_LAUNCHER"
# Ports for the first process of a SLURM job: by the job's number, so that jobs on one machine do not meet.
FIRST_PORT, NUM_PORTS = 20_000, 20_000


class Place(NamedTuple):
    """A process among those of its run."""

    rank: int
    world_size: int
    local_rank: int  # on its machine
    local_world_size: int
    init_method: str  # of torch.distributed: where the processes meet
    own_device: bool = False  # True if the launcher shows every process its own device alone


def find_place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun (or anything that sets its variables) or srun gave this process; None: it is alone.

    Raises:
        UserError: some of the variables are missing, or are no numbers.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        init_method = environ.get(RENDEZVOUS, "env://")
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing and init_method == "env://":
            raise UserError(
                f"RANK and WORLD_SIZE are set, and {' and '.join(missing)} is not: where the processes meet is not "
                "known. Start them by torchrun, srun or --devices; for a run of one process unset RANK and WORLD_SIZE"
            )
        rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        local_rank = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else rank
        local_size = _number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else world_size
        place = Place(rank, world_size, local_rank, local_size, init_method)
    elif "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ and not _is_batch_script(environ):
        world_size = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
        rank, local_rank = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
        place = Place(rank, world_size, local_rank, _tasks_here(environ, world_size), _meeting_point(environ), True)
    else:
        return None
    if not 0 <= place.rank < place.world_size:
        raise UserError(f"this process is rank {place.rank} of {place.world_size} by its environment; see its launcher")
    return place if place.world_size > 1 else None


def _is_batch_script(environ: Mapping[str, str]) -> bool:
    """True in the script that sbatch runs once: it has variables of a task, and only srun starts tasks."""
    return "SLURM_SUBMIT_DIR" in environ and not {"SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"} & environ.keys()


def _meeting_point(environ: Mapping[str, str]) -> str:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", "")
    host = environ.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1"
    job = environ.get("SLURM_JOB_ID", "0")
    port = environ.get("MASTER_PORT") or FIRST_PORT + int(job if job.isdecimal() else 0) % NUM_PORTS
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes, such as "gpu[003-005,9],login1"."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _tasks_here(environ: Mapping[str, str], world_size: int) -> int:
    """The number of this run's processes on this machine, by a list such as "8(x2),4"."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    node = environ.get("SLURM_NODEID", "0")
    here = int(node) if node.isdecimal() else 0
    return counts[here] if here < len(counts) else world_size


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"the environment's {name} is {value!r}; it must be a number, as torchrun and srun set it")
    return int(value)
