"""The same images as a folder, as shards, in tables and behind a URL train the same network, bit for bit."""

import numpy as np
import pytest
import torch

from selfpatch.commands.pretrain import pretrain
from selfpatch.commands.shard import shard
from selfpatch.config import CropsConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import training_batches
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.data.manifest import open_images
from selfpatch.demo.scenes import write_scenes
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import read_metrics
from tests.data.test_tables import save_to_disk, table_of, write_parquet
from tests.small_models import tiny_config


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("forms")
    write_scenes(root, num_unlabeled=7, num_train=1, num_val=1, size=48, seed=0)
    folder = root / "images"
    shard(folder, root / "shards")
    table = table_of(folder)
    return {
        "folder": folder,
        "shards": root / "shards",
        "arrow": save_to_disk(table, root / "arrow"),
        "parquet": write_parquet(table, root / "parquet"),
    }


def first_batches(images, *, num_workers: int = 0, rank: int = 0, world_size: int = 1, block_size=None) -> list:
    crops = CropsConfig(global_size=32, local_size=24, num_local=2)
    batches = training_batches(
        images, EpochSampler(len(images), 4, 0, block_size=block_size), MultiCrop(crops),
        first_step=0, stop_step=3, num_workers=num_workers, rank=rank, world_size=world_size,
    )  # fmt: skip
    return [
        {name: value.clone() for name, value in batch.crops._asdict().items() if isinstance(value, torch.Tensor)}
        | {"bad": batch.bad_images}
        for batch in batches
    ]


def equal(first: list, second: list) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if k != "bad" else a[k] == b[k] for k in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("form", ["shards", "arrow", "parquet"])
def test_first_batches_are_the_same(forms, form):
    folder, other = (open_images(forms[name]) for name in ("folder", form))
    for block_size in (None, 2):
        expected = first_batches(folder, block_size=block_size)
        assert expected[0].keys() > {"bad"}
        assert equal(first_batches(other, block_size=block_size), expected)
        assert equal(first_batches(other, num_workers=2, block_size=block_size), expected)
    assert not equal(first_batches(other, block_size=2), first_batches(other))


def test_a_run_goes_on_with_shards_and_other_workers(forms, tmp_path):
    """Shards have the fingerprints of their folder, so a run may even change over."""
    common = {"optim.steps": 3, "run.save_every": 3, "evaluate.every_steps": 100, "images.shuffle_block": 2}

    def run(form: str, out: str, **settings):
        given = common | {"efficiency.num_workers": 0} | {k.replace("__", "."): v for k, v in settings.items()}
        return pretrain(forms[form], tmp_path / out, config=tiny_config(), settings=given)

    run("folder", "folder")
    run("shards", "shards", run__stop_at_step=1)
    run("shards", "shards", efficiency__num_workers=2, run__stop_at_step=2)
    run("folder", "shards")
    losses = [[line["loss"] for line in read_metrics(tmp_path / out / "metrics.jsonl")] for out in ("folder", "shards")]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    states = [
        checkpoint.load_latest(tmp_path / out / "checkpoints")[0].tensors["model"] for out in ("folder", "shards")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_ranks_share_a_batch_of_shards(forms):
    images = open_images(forms["shards"])
    whole = first_batches(images, block_size=2)
    halves = [first_batches(images, rank=rank, world_size=2, block_size=2) for rank in (0, 1)]
    name, value = next((n, v) for n, v in whole[0].items() if n != "bad")
    axis = next(i for i, size in enumerate(value.shape) if size == 4)
    joined = torch.cat([half[0][name] for half in halves], dim=axis)
    assert torch.equal(joined, value)
    assert isinstance(np.asarray(joined), np.ndarray) and len(ImageFolder(forms["folder"])) == len(images)
