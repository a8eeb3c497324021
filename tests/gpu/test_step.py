"""One training step on a GPU is that of the CPU, whatever makes it fast."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from selfpatch.pretraining.views import Views
from selfpatch.training.precision import autocast_for
from tests.gpu.devices import DEVICES, GPU, THEIR_WARNINGS
from tests.small_models import random_crops, tiny_config, tiny_student_teacher

pytestmark = THEIR_WARNINGS


def step(device: str, precision: str = "float32") -> tuple[float, torch.Tensor]:
    """The loss, and the gradient as one vector, without keys' biases, which have none but rounding."""
    config = tiny_config()
    config = replace(config, backbone=replace(config.backbone, drop_path=0.0))  # drawn otherwise on every device
    student_teacher = tiny_student_teacher(config).to(device).train()
    crops = [crops.to(device) for crops in random_crops(config)]
    with autocast_for(precision, torch.device(device))():
        loss, metrics = student_teacher(Views(*crops), 0)
    loss.backward()
    assert {value.device.type for value in (loss, *metrics.values())} == {device}
    assert loss.dtype == torch.float32
    gradients = {n: p.grad for n, p in student_teacher.named_parameters() if p.grad is not None}
    assert all(gradient.device.type == device for gradient in gradients.values())
    kept = [gradient.flatten() for name, gradient in gradients.items() if not name.endswith(("k.bias", "qkv.bias"))]
    return loss.item(), torch.cat(kept).cpu()


def assert_alike(
    ours: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor], *, loss: float, length: float, angle: float
) -> None:
    """Relative differences of the loss and of the gradient's length, and 1 - the cosine between gradients, at most."""
    assert ours[0] == pytest.approx(expected[0], rel=loss)
    assert (ours[1].norm() / expected[1].norm()).item() == pytest.approx(1, abs=length)
    assert 1 - F.cosine_similarity(ours[1], expected[1], dim=0) < angle


@pytest.mark.parametrize("device", [GPU])
def test_float32_is_that_of_the_cpu(device):
    """Convolutions of patches may use TF32, which has three digits."""
    assert_alike(step(device), step("cpu"), loss=1e-3, length=0.01, angle=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_is_close_to_float32(device):
    expected, ours = step(device), step(device, "bf16")
    assert ours[0] != expected[0]
    assert_alike(ours, expected, loss=3e-3, length=0.08, angle=0.02)


@pytest.mark.parametrize("device", [GPU])
def test_auto_is_bf16_on_a_gpu_that_has_it(device):
    with autocast_for("auto", torch.device(device))():
        product = torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    assert product.dtype == (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    )
