"""Runs on a GPU: they go on where they were, compiled and uncompiled alike, whoever changes the colours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfpatch.commands.pretrain import pretrain
from selfpatch.demo.scenes import write_scenes
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import read_metrics
from tests.gpu.devices import DEVICES, GPU, THEIR_WARNINGS
from tests.small_models import tiny_config

pytestmark = THEIR_WARNINGS

NUM_STEPS = 6
HALF = {"run.stop_at_step": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=13, num_train=0, num_val=0, size=48, seed=0)
    return folder / "images"


def run(images: Path, out: Path, device: str, **changes: Any) -> Path:
    settings = {"run.device": device, "optim.steps": NUM_STEPS, "efficiency.num_workers": 0}
    settings |= {"evaluate.every_steps": NUM_STEPS}  # pictures take longer than steps
    pretrain(images, out, config=tiny_config(), settings=settings | changes)
    return out


def losses(out: Path) -> list[float]:
    found = [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    assert len(found) == NUM_STEPS
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    newest, _ = checkpoint.load_latest(out / "checkpoints")
    assert newest is not None and newest.state["step"] == NUM_STEPS
    return newest.tensors["model"] | {f"optimizer.{name}": value for name, value in newest.tensors["optimizer"].items()}


def assert_alike(ours: Path, expected: Path, tolerance: float) -> None:
    """Losses step by step, and the backbones at the end, but for the sign of steps where a gradient is all rounding."""
    assert losses(ours) == pytest.approx(losses(expected), rel=tolerance)
    a, b = (load_file(folder / "backbone.safetensors") for folder in (ours, expected))
    torch.testing.assert_close(a, b, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_goes_on_within_rounding(device, images, tmp_path):
    unbroken = run(images, tmp_path / "unbroken", device)
    run(images, tmp_path / "run", device, **HALF)
    assert_alike(run(images, tmp_path / "run", device), unbroken, 2e-3)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_goes_on_bit_for_bit_by_deterministic_algorithms(device, images, tmp_path):
    """Without local crops: torch has no such gradient on a GPU for the position embeddings that timm resamples."""
    alone = {"crops.num_local": 0}
    unbroken = weights(run(images, tmp_path / "unbroken", device, **alone))
    run(images, tmp_path / "run", device, **alone, **HALF)
    ours = weights(run(images, tmp_path / "run", device, **alone))
    assert ours.keys() == unbroken.keys()
    assert not [name for name in ours if not torch.equal(ours[name], unbroken[name])]


@pytest.mark.parametrize("device", [GPU])
def test_compiled_is_as_eager(device, images, tmp_path):
    settings = {"efficiency.precision": "float32"}
    eager = run(images, tmp_path / "eager", device, **settings)
    assert_alike(run(images, tmp_path / "compiled", device, **settings, **{"efficiency.compile": True}), eager, 2e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_colors_augmented_on_the_device_are_those_of_the_workers(device, images, tmp_path):
    of_workers, of_device = (
        run(images, tmp_path / where, device, **{"efficiency.color_augmentation": where})
        for where in ("worker", "device")
    )
    assert_alike(of_device, of_workers, 1e-2)
