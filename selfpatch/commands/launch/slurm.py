"""`selfpatch slurm`: an sbatch script for a run on a cluster, submitted only when asked. Imports no torch."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from selfpatch.errors import RunFailedError, UserError, working
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.terminal import say

# What a run ends with after SLURM's warning: it has saved, and goes on when it is started again.
WARNING_SIGNAL = "USR2"
WARNED_CODE = 128 + signal.SIGUSR2


def slurm(
    script: Path | str,
    command: Sequence[str],
    *,
    nodes: int = 1,
    gpus_per_node: int = 8,
    tasks_per_node: int | None = None,
    cpus_per_task: int | None = None,
    mem: str | None = None,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    job_name: str = "selfpatch",
    log: str = "%x-%j.log",
    warning_s: int = 300,
    submit: bool = False,
) -> None:
    """Write `script`, which runs `selfpatch COMMAND` with a process per GPU, and goes on in a new job when time is up.

    Raises:
        UserError: a number is out of range, the script cannot be written, or there is no sbatch to submit it with.
        RunFailedError: sbatch refused it.
    """
    # 1. What can be known to be wrong before anything is written.
    script = Path(script)
    for name, value, least in (("nodes", nodes, 1), ("gpus-per-node", gpus_per_node, 0), ("warning-s", warning_s, 1)):
        if value < least:
            raise UserError(f"--{name} is {value}; it must be {least} or more")
    if submit and shutil.which("sbatch") is None:
        raise UserError(
            f"there is no sbatch here to submit {script} with; run this on a login node of the cluster, or without "
            "--submit, and submit the script there"
        )

    # 2. The script.
    values = {
        "job-name": job_name,
        "output": log,
        "open-mode": "append",  # a job that was requeued goes on in the same log
        "nodes": nodes,
        "ntasks-per-node": tasks_per_node or max(gpus_per_node, 1),
        "gpus-per-node": gpus_per_node or None,
        "cpus-per-task": cpus_per_task,
        "mem": mem,
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "signal": f"{WARNING_SIGNAL}@{warning_s}",
    }
    options = [*(f"--{name}={value}" for name, value in values.items() if value is not None), "--requeue"]
    with working():
        script.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(script) as file:
            file.write_text(script_text(options, command, cpus_per_task), encoding="utf-8", errors="surrogateescape")
            file.chmod(0o755)

    # 3. To the cluster, if asked.
    if not submit:
        say(f"wrote {script}; submit it with: bash {shlex.quote(str(script))}")
        return
    # Its name cannot be taken for an option, and no directive is in question: options come first.
    result = subprocess.run(["sbatch", *options, os.path.abspath(script)], check=False)
    if result.returncode:
        raise RunFailedError(f"sbatch refused {script} (exit code {result.returncode}); its message is above")


def script_text(options: Sequence[str], command: Sequence[str], cpus_per_task: int | None) -> str:
    """The script. Whatever the options and the command hold, each reaches sbatch or srun as one argument."""
    directives = "".join(f"#SBATCH {directive}\n" for option in options if (directive := as_directive(option)))
    srun = ["srun", "--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else [])]
    words = [*srun, "--", sys.executable, "-m", "selfpatch", *command]
    return f"""#!/bin/bash
{directives}
# Outside of a job this submits itself: bash SCRIPT. (sbatch SCRIPT reads the lines above, which hold no line breaks.)
if [ -z "${{SLURM_JOB_ID:-}}" ]; then
    exec sbatch {shlex.join(options)} "$0"
fi

# One process per task; they find each other by SLURM's variables.
{shlex.join(words)}
code=$?

# SLURM sends {WARNING_SIGNAL} before the time is up. The run saves, ends with {WARNED_CODE}, and goes on when requeued.
if [ "$code" -eq {WARNED_CODE} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def as_directive(option: str) -> str | None:
    """An option as a line "#SBATCH ..." has it, quoted as sbatch reads it; None: no line can hold it."""
    if not option.isprintable():
        return None
    name, equals, value = option.partition("=")
    if not equals or re.fullmatch(r"[\w%:@.,/+-]+", value, re.ASCII):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
