"""Several processes that share a batch train as one process with all of it: every recipe, by DDP and by FSDP2; and every
method, alone and with SelfPatch, on every family of backbones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.demo.scenes import write_scenes
from tests.distributed.joined_batch import CASES, KINDS, METHODS, run_tiny

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
    return run_tiny(2, folder, folder / "images")


@pytest.fixture(scope="module")
def four(folder, two) -> dict[str, Any]:
    return run_tiny(4, folder, folder / "images")


@pytest.fixture(scope="module")
def one(folder, two) -> dict[str, Any]:
    return run_tiny(1, folder, folder / "images")


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


@pytest.fixture(scope="module")
def methods(folder, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """On two processes and on one."""
    of_methods = tmp_path_factory.mktemp("methods")
    given: dict[str, Any] = {"recipes": list(METHODS), "kinds": ("ddp",), "steps": 3}
    return tuple(run_tiny(num_ranks, of_methods, folder / "images", **given) for num_ranks in (2, 1))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_backbone_on_two_processes(method, methods):
    two, one = (results[f"ddp/{method}"] for results in methods)
    require_equal(two, one)
    assert max(gradient.abs().max() for gradient in one["gradients"].values()) > 1000 * TOLERANCE
