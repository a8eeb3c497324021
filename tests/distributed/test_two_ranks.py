"""Promises about several ranks, each kept by two gloo processes that share a batch: they equal one with the whole."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from selfpatch import distributed
from selfpatch.config import SelfDistillationConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import training_batches
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.demo.scenes import write_scenes
from selfpatch.distributed import (
    any_rank,
    gather_list,
    gather_rows,
    global_mean,
    global_sum,
    on_rank_0,
    rand_rows,
    together,
)
from selfpatch.errors import FailedElsewhereError, UserError
from selfpatch.objectives.koleo import nearest_distances
from selfpatch.objectives.moco_v3 import info_nce
from selfpatch.objectives.projection_heads import BatchNorm
from selfpatch.objectives.self_distillation import SelfDistillation, distillation_signals, sinkhorn
from selfpatch.optim.optimizer import optimizer_step
from selfpatch.output.metric_logger import MetricLogger, read_metrics
from selfpatch.output.progress import TrainingProgress
from selfpatch.training.loop import StepOutput, train
from tests.small_models import tiny_config

pytestmark = pytest.mark.slow
WORLD_SIZE, STEPS = 2, 3
# Rows of each rank; together as many as logits.
SHARES = [[4, 4], [7, 1], [8, 0]]


def logits() -> torch.Tensor:
    return 3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def part(x: torch.Tensor, rank: int) -> torch.Tensor:
    return x.chunk(WORLD_SIZE)[rank]


def batch_norm_of(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized rows, and the gradient of a sum that is different for each of their values."""
    torch.manual_seed(0)
    norm, rows = BatchNorm(6), rows.clone().requires_grad_()
    normalized = norm(rows)
    normalized.sin().sum().backward()
    assert rows.grad is not None
    return normalized.detach(), rows.grad


def koleo_of(tokens: torch.Tensor) -> torch.Tensor:
    """The gradient of the sum of all ranks' logarithms of distances."""
    tokens = tokens.clone().requires_grad_()
    nearest_distances(tokens[None]).log().sum().backward()
    assert tokens.grad is not None
    return tokens.grad


class Noise:
    """A task of the loop that does nothing but draw numbers, as dropout does."""

    batch_size = 1

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def train_mode(self) -> None:
        pass

    def step(self, batch: Any, step: int) -> StepOutput:
        self.drawn.append(torch.rand(()).item())
        return StepOutput({"loss": torch.tensor(1.0)}, True)

    def log_scalars(self, step: int) -> dict[str, float]:
        return {}

    def log_message(self, means: dict[str, float], *, last: bool) -> str | None:
        return None

    def divergence_hint(self, step: int, metrics: dict[str, torch.Tensor]) -> str:
        return ""


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    found: dict[str, Any] = {}

    # Sums and agreement, and that the input is left alone.
    x = torch.tensor([1.0 + rank, 10.0])
    found["sum"], found["mean"], found["input"] = global_sum(x), global_mean(x), x
    found["any"] = [any_rank(rank == 1), any_rank(False), any_rank(True)]

    # Targets, centers and signals of a shared batch.
    distillation = SelfDistillation(6, SelfDistillationConfig(), steps_per_epoch=1)
    distillation.accumulate_center(part(logits(), rank).mean(dim=0))
    distillation.commit()
    found["center"] = distillation.center
    found["sinkhorn"] = sinkhorn(part(logits(), rank))
    found["signals"] = distillation_signals(part(logits(), rank).softmax(dim=-1), torch.tensor(1.0))

    # Batch norm, and the nearest image.
    for share in SHARES:
        found[f"batch_norm {share}"] = batch_norm_of(logits().split(share)[rank])
    found["koleo"] = koleo_of(part(logits(), rank))

    # Random numbers, errors and results of one rank.
    torch.manual_seed(0)
    found["rand_rows"] = rand_rows(6, 2)
    try:
        with together():
            if rank == 1:
                raise UserError("only here")
    except (UserError, FailedElsewhereError) as error:
        code = f", code {error.code}" if isinstance(error, FailedElsewhereError) else ""
        found["together"] = f"{type(error).__name__}: {error}{code}"
    found["on_rank_0"] = on_rank_0(lambda: {"rank": distributed.rank(), "world_size": distributed.world_size()})
    found["list"] = gather_list([["a"], [1]][rank])

    # Queries of a rank among the keys of all.
    keys = gather_rows(part(logits().roll(1, dims=0), rank))
    found["info_nce"] = info_nce(part(logits(), rank), keys, 0.5)

    # A gradient that is not finite on one rank: nobody steps.
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, float("nan") if rank == 1 else 1.0])
    found["applied"] = optimizer_step(torch.optim.SGD([parameter], lr=0.1), torch.tensor(1.0), max_norm=0)
    found["parameter"] = parameter.detach()

    # The loop: own random numbers per rank, and a stop on one rank is a stop on all.
    task = Noise()
    found["steps"] = train(
        task, iter(range(9)), first_step=0, num_steps=9, seed=0, log_every=1, max_skipped=1, device=torch.device("cpu"),
        logger=MetricLogger(folder / f"metrics-{rank}.jsonl"), progress=TrainingProgress(0, 9),
        should_stop=lambda done: rank == 1 and done == 4,
    )  # fmt: skip
    found["drawn"] = task.drawn

    # Crops: a rank's own part of every batch.
    found["crops"] = crops_of(folder, rank, WORLD_SIZE)
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def crops_of(folder: Path, rank: int, world_size: int) -> list[torch.Tensor]:
    images = ImageFolder(folder / "images")
    config = dataclasses.replace(tiny_config().crops, num_local=0)
    batches = training_batches(
        images, EpochSampler(len(images), 4, seed=0), MultiCrop(config), first_step=0, stop_step=STEPS, num_workers=0,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    return [batch.crops.global_crops.clone() for batch in batches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_scenes(folder, num_unlabeled=9, num_train=1, num_val=1, size=48, seed=0)
    mp.start_processes(run_rank, (folder,), nprocs=WORLD_SIZE, start_method="spawn")
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def test_sums_means_and_agreement(ranks):
    for rank, found in enumerate(ranks):
        assert found["sum"].tolist() == [3.0, 20.0]
        assert found["mean"].tolist() == [1.5, 10.0]
        assert found["input"].tolist() == [1.0 + rank, 10.0]
        assert found["any"] == [True, False, True]


def test_the_center_is_that_of_the_joined_batch(ranks):
    for found in ranks:
        torch.testing.assert_close(found["center"], 0.1 * logits().mean(dim=0))


def test_sinkhorn_balances_the_rows_of_all_ranks(ranks):
    torch.testing.assert_close(torch.cat([found["sinkhorn"] for found in ranks]), sinkhorn(logits()))
    assert not torch.allclose(ranks[0]["sinkhorn"], sinkhorn(part(logits(), 0)), atol=1e-3)


def test_queries_are_compared_with_the_keys_of_all_ranks(ranks):
    whole = info_nce(logits(), logits().roll(1, dims=0), 0.5)
    for i in range(2):
        torch.testing.assert_close(sum(found["info_nce"][i] for found in ranks) / WORLD_SIZE, whole[i])


def test_the_mean_target_of_the_signals_is_over_all_ranks(ranks):
    whole = distillation_signals(logits().softmax(dim=-1), torch.tensor(1.0))
    for found in ranks:
        torch.testing.assert_close(found["signals"]["mean_teacher_entropy"], whole["mean_teacher_entropy"])


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(ranks):
    for found in ranks:
        assert found["applied"] is False
        assert found["parameter"].tolist() == [1.0, 1.0]


def test_a_stop_on_one_rank_stops_all_at_the_same_step(ranks, folder):
    assert [found["steps"] for found in ranks] == [4, 4]
    assert [len(read_metrics(folder / f"metrics-{rank}.jsonl")) for rank in range(WORLD_SIZE)] == [4, 4]


def test_ranks_draw_alike_and_take_their_part_of_what_is_random_about_images(ranks):
    assert ranks[0]["drawn"] == ranks[1]["drawn"]
    torch.manual_seed(0)
    whole = torch.rand(3 * 4).unflatten(0, (3, 4))  # three crops of four images
    for rank, found in enumerate(ranks):
        assert torch.equal(found["rand_rows"].unflatten(0, (3, 2)), whole[:, 2 * rank : 2 * rank + 2])


def test_a_failure_on_one_rank_is_known_to_all_and_reported_by_it_alone(ranks):
    assert ranks[0]["together"] == "FailedElsewhereError: rank 1 of this run failed, code 2"
    assert ranks[1]["together"] == "UserError: only here"
    assert [found["on_rank_0"] for found in ranks] == [{"rank": 0, "world_size": 1}] * 2
    assert [found["list"] for found in ranks] == [["a", 1]] * 2


def test_batch_norm_over_ranks_is_that_of_the_joined_batch(ranks):
    """Also where a rank has fewer rows than others, or none; in gradients as well."""
    for share in SHARES:
        whole = batch_norm_of(logits())
        name = f"batch_norm {share}"
        torch.testing.assert_close(torch.cat([found[name][0] for found in ranks]), whole[0])
        torch.testing.assert_close(torch.cat([found[name][1] for found in ranks]), whole[1])


def test_the_nearest_image_is_sought_on_all_ranks(ranks):
    whole = koleo_of(logits())
    torch.testing.assert_close(torch.cat([found["koleo"] for found in ranks]), whole)
    assert not torch.allclose(ranks[0]["koleo"], koleo_of(part(logits(), 0)), atol=1e-3)


def test_the_ranks_share_every_batch(ranks, folder):
    whole = crops_of(folder, 0, 1)
    for step in range(STEPS):
        assert torch.equal(torch.cat([found["crops"][step] for found in ranks], dim=1), whole[step])
