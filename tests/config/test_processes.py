"""Which of several processes this one is, by the variables of torchrun and of SLURM."""

import pytest

from selfpatch.config.processes import Place, find_place, first_host
from selfpatch.errors import UserError

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "41", "SLURM_SUBMIT_DIR": "/home", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "6",
    "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip


def test_alone():
    assert find_place({}) is None
    assert find_place({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}) is None


def test_torchrun():
    assert find_place(TORCHRUN) == Place(5, 8, 1, 4, "env://")


def test_srun():
    assert find_place(SRUN) == Place(4, 6, 0, 2, "tcp://gpu07:20041", own_device=True)
    assert find_place({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "9"}).init_method == "tcp://here:9"
    # A stand-in for srun that sets no more than this.
    few = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}
    assert find_place(few) == Place(1, 2, 1, 2, "tcp://127.0.0.1:20000", own_device=True)


def test_torchrun_within_a_job_counts_before_slurm():
    assert find_place(SRUN | TORCHRUN).world_size == 8


def test_the_script_of_a_job_is_no_task():
    """It has variables of one, and would wait for others that nobody starts."""
    script = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert find_place({**script, "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"), ("gpu07,gpu08", "gpu07"), ("gpu[07-09,11],login", "gpu07"), ("a[3],b", "a3"),
        ("rack1-gpu[003,005]", "rack1-gpu003"), ("n[1-2]-ib", "n1-ib"), ("", ""),
    ],
)  # fmt: skip
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
        ({**TORCHRUN, "RANK": "eight"}, "RANK is 'eight'"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_LOCALID is ''"),
    ],
)
def test_mistakes(environ, says):
    with pytest.raises(UserError, match=says):
        find_place(environ)
