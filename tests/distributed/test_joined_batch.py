"""Several processes that share a batch train as one process with all of it: every recipe, by DDP and by FSDP2."""

from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.demo.scenes import write_scenes
from tests.distributed.joined_batch import CASES, KINDS, run_tiny

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    write_scenes(folder, num_unlabeled=20, num_train=1, num_val=1, size=48, seed=0)
    return folder


@pytest.fixture(scope="module")
def two(folder) -> dict[str, Any]:
    """First, as it saves what all go on from."""
    return run_tiny(2, folder)


@pytest.fixture(scope="module")
def four(folder, two) -> dict[str, Any]:
    return run_tiny(4, folder)


@pytest.fixture(scope="module")
def one(folder, two) -> dict[str, Any]:
    return run_tiny(1, folder)


def require_equal(joined: dict[str, Any], whole: dict[str, Any]) -> None:
    assert joined.keys() == whole.keys()
    for part, expected in whole.items():
        torch.testing.assert_close(joined[part], expected, atol=TOLERANCE, rtol=TOLERANCE, msg=f"{part}: {{}}".format)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", CASES)
def test_losses_gradients_and_weights_are_those_of_one_process(recipe, kind, one, two, four):
    whole = one[f"ddp/{recipe}"]
    require_equal(two[f"{kind}/{recipe}"], whole)
    require_equal(four[f"{kind}/{recipe}"], whole)
    # Not because there is nothing to see.
    assert max(gradient.abs().max() for gradient in whole["gradients"].values()) > 1000 * TOLERANCE
    assert all(torch.isfinite(tensor).all() for tensor in whole["weights"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(kind, one, two, four):
    require_equal(two[f"{kind}/resumed"], one["ddp/resumed"])
    require_equal(four[f"{kind}/resumed"], one["ddp/resumed"])
