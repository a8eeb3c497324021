"""The sbatch script: whatever a field holds reaches sbatch and srun as one argument."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfpatch import cli
from selfpatch.commands.launch.slurm import as_directive, slurm
from selfpatch.errors import RunFailedError, UserError

FIELDS = ("mem", "time", "partition", "account", "qos", "constraint", "job_name", "log")
# All that an argument of a process can hold.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
STUB = """#!/bin/bash
printf '%s\\0' "$@" > "$STUBS/$(basename "$0").arguments"
exit "${STUB_CODE:-0}"
"""


@pytest.fixture
def stubs(tmp_path, monkeypatch) -> Path:
    """sbatch, srun and scontrol that write down what they are given."""
    for name in ("sbatch", "srun", "scontrol"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STUBS", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


def given_to(stubs: Path, name: str) -> list[str]:
    arguments = (stubs / f"{name}.arguments").read_bytes().decode().split("\0")[:-1]
    (stubs / f"{name}.arguments").unlink()
    return arguments


@given(fields=st.fixed_dictionaries(dict.fromkeys(FIELDS, texts)), command=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_one_argument(stubs, fields, command):
    script = stubs / "-job $(touch canary) ;'.sh"
    slurm(script, ["pretrain", *command], nodes=2, gpus_per_node=3, **fields, submit=True)
    subprocess.run(["bash", "-n", script], check=True)

    # Submitted by us, and by the script itself.
    expected = {f"--{name.replace('_', '-')}={text}" for name, text in fields.items() if name != "log"}
    expected |= {f"--output={fields['log']}", "--nodes=2", "--ntasks-per-node=3", "--signal=USR2@300", "--requeue"}
    by_us = given_to(stubs, "sbatch")
    subprocess.run(["bash", script], check=True)
    by_itself = given_to(stubs, "sbatch")
    assert by_us == by_itself
    assert by_us[-1] == str(script)
    assert expected <= set(by_us)

    # Inside of the job.
    subprocess.run(["bash", script], check=True, env=os.environ | {"SLURM_JOB_ID": "7"})
    words = given_to(stubs, "srun")
    assert words[words.index("selfpatch") + 1 :] == ["pretrain", *command]
    assert not (stubs / "canary").exists()
    # No field has made a directive of its own.
    directives = [line for line in script.read_text().split("\n") if line.startswith("#SBATCH")]
    assert len(directives) == sum(as_directive(option) is not None for option in by_us[:-1])


def test_a_run_that_was_warned_is_queued_again_and_another_is_not(stubs):
    slurm(stubs / "job.sh", ["pretrain", "a", "b"])
    for code, queued in ((0, False), (1, False), (140, True)):
        environ = os.environ | {"SLURM_JOB_ID": "7", "STUB_CODE": str(code)}
        assert subprocess.run(["bash", stubs / "job.sh"], env=environ).returncode == code
        assert (stubs / "scontrol.arguments").exists() == queued
    assert given_to(stubs, "scontrol") == ["requeue", "7"]


def test_directives():
    assert as_directive("--requeue") == "--requeue"
    assert as_directive("--output=%x-%j.log") == "--output=%x-%j.log"
    assert as_directive('--qos=a "b" \\c') == '--qos="a \\"b\\" \\\\c"'
    assert as_directive("--qos=a\n#SBATCH --account=b") is None


def test_nothing_is_submitted_unless_asked(stubs, capsys):
    assert cli.main(["slurm", str(stubs / "job.sh"), "--nodes", "2", "--", "pretrain", "a", "b", "--seed", "3"]) == 0
    assert not (stubs / "sbatch.arguments").exists()
    assert "submit it with: bash " in capsys.readouterr().out


def test_mistakes_are_found_before_the_job_is(stubs, tmp_path, monkeypatch, capsys):
    for arguments, says in (
        (["pretrain", "a"], "OUT is missing"),
        (["pretrain", "a", "b", "--optim.lr", "x"], "--optim.lr is 'x'"),
        (["evaluate", "a"], "after -- comes evaluate"),
    ):
        assert cli.main(["slurm", str(stubs / "job.sh"), "--", *arguments]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="nodes is 0"):
        slurm(stubs / "job.sh", ["pretrain"], nodes=0)
    monkeypatch.setenv("STUB_CODE", "1")
    with pytest.raises(RunFailedError, match="sbatch refused"):
        slurm(stubs / "job.sh", ["pretrain"], submit=True)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is no sbatch"):
        slurm(stubs / "other.sh", ["pretrain"], submit=True)
    assert not (stubs / "other.sh").exists()
