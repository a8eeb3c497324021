"""Options of `selfpatch slurm`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from selfpatch.cli.arguments import parse
from selfpatch.cli.command import Command
from selfpatch.cli.commands import pretrain
from selfpatch.errors import UserError


def options(arguments: Sequence[str]) -> type:
    @dataclass(frozen=True)
    class Slurm:
        """Write an sbatch script for a run on several GPUs or machines.

        selfpatch slurm SCRIPT -- pretrain IMAGES OUT ... The job saves and requeues itself before its time is up.
        """

        script: Annotated[Positional[Path], arg(metavar="SCRIPT", help="the file to write")]
        command: Annotated[
            Positional[tuple[str, ...]],
            arg(metavar="COMMAND", help="after --: pretrain, with its arguments and options"),
        ]
        # number of machines
        nodes: int = 1
        # GPUs of each machine, a process each; 0: none
        gpus_per_node: int = 8
        # processes on each machine; None: one per GPU
        tasks_per_node: int | None = None
        # CPU cores of each process, which its data workers share; None: as the cluster gives
        cpus_per_task: int | None = None
        # memory of each machine, such as 64G; None: as the cluster gives
        mem: str | None = None
        # longest time of a job, such as 24:00:00; None: the partition's
        time: str | None = None
        # partition; None: the cluster's default
        partition: str | None = None
        # account that is charged; None: the user's default
        account: str | None = None
        # quality of service; None: the default
        qos: str | None = None
        # features that machines must have; None: any
        constraint: str | None = None
        # name of the job
        job_name: str = "selfpatch"
        # file of the output; %x is the job's name, %j its number
        log: str = "%x-%j.log"
        # seconds before the end of the time in which the run saves
        warning_s: int = 300
        # submit it, too
        submit: bool = False

        def __post_init__(self):
            if self.command[:1] != ("pretrain",):
                raise UserError(
                    f"after -- comes {' '.join(self.command[:1]) or 'nothing'}; give pretrain with its arguments: "
                    "selfpatch slurm SCRIPT -- pretrain IMAGES OUT"
                )
            rest = self.command[1:]
            parse(pretrain.options(rest), rest, "selfpatch pretrain")  # its mistakes are found here, not in the job

    return Slurm


COMMAND = Command("write an sbatch script for a run on a cluster", options, "selfpatch.commands.launch.slurm:slurm")
