"""Row 31: a bucket that fails."""

import os
from pathlib import Path

import pytest

from selfpatch.commands.shard import shard
from tests.faults.bucket import CREDENTIALS, bucket
from tests.faults.command import NUM_STEPS, assert_same_run, checkpoints, metrics

# Seconds that a run of these tests waits for an answer.
TIMEOUT_S = 1.0


def small_pieces_and_pauses() -> None:
    from selfpatch.data.remote import remote_file

    remote_file.PIECE_BYTES, remote_file.TIMEOUT_S = 8192, TIMEOUT_S
    remote_file.PAUSES_S = (0.01, 0.05, 0.1, 0.2)


@pytest.fixture
def shards(runs) -> Path:
    shard(runs.scenes / "images", runs.folder / "shards")
    return runs.folder / "shards"


def environ(proxy, cache: Path) -> dict[str, str]:
    return CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1", "SELFPATCH_CACHE": str(cache),
                          "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}  # fmt: skip


def all_text(folder: Path) -> str:
    return "".join(
        path.read_text(errors="replace")
        for path in folder.rglob("*")
        if path.suffix in (".yaml", ".jsonl", ".txt", ".json")
    )


def test_row_31_a_bucket_that_answers_5xx_slowly_or_short_is_survived(runs, shards, unbroken):
    """The run ends as that on local files: nothing of a wrong answer is used, and nothing is missing."""
    kinds = ("503", "short", "", "slow", "cut", "503", "short", "")
    with bucket(shards) as proxy:
        proxy.set_fault(lambda number: kinds[number] if number < len(kinds) else "503" if number % 5 == 0 else "")
        images, here = "s3://images", environ(proxy, runs.folder / "cache")
        printed = runs.run(images=images, environ=here, fault=small_pieces_and_pauses)
        assert_same_run(runs.out, unbroken)
        assert not (runs.out / "bad_images.txt").exists()
        assert len([line for line in proxy.requests if line]) > len(kinds)

        # Workers of their own, which the cache serves without a request for an image; and stopped and gone on.
        asked = len([line for line in proxy.requests if ".tar" in line])
        runs.run(
            "--run.stop-at-step", 3, images=images, environ=here, fault=small_pieces_and_pauses, out=runs.folder / "2"
        )
        runs.run(
            "--efficiency.num-workers",
            2,
            images=images,
            environ=here,
            fault=small_pieces_and_pauses,
            out=runs.folder / "2",
        )
        assert_same_run(runs.folder / "2", unbroken)
        assert len([line for line in proxy.requests if ".tar" in line]) == asked

        # A bucket that stays away: images that cannot be read, then an end in words.
        proxy.set_fault(lambda _: "503")
        other = environ(proxy, runs.folder / "other-cache")
        refused = runs.run(images=images, environ=other, fault=small_pieces_and_pauses, out=runs.folder / "3", code=2)
        assert (
            ("s3://images cannot be read" in refused and "503" in refused) or "Slow" in refused or "reduce" in refused
        )
    everything = printed + refused + all_text(runs.folder)
    assert not any(secret in everything for secret in CREDENTIALS.values())
    assert checkpoints(runs.out)[-1] == NUM_STEPS and metrics(runs.out)
    assert os.listdir(runs.folder / "cache" / "remote")
