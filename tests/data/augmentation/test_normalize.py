"""Normalized crops, and the constants that are made once per device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.data.augmentation.normalize import device_constant, normalize


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 6, 3, 4, 5)])
def test_normalize(shape):
    crops = torch.randint(0, 256, shape, dtype=torch.uint8)
    before = crops.clone()
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    normalized = normalize(crops, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalized, (crops / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(crops, before)
    channels_last = crops.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert torch.equal(normalize(channels_last, IMAGENET_MEAN, IMAGENET_STD), normalized)
    assert normalize(channels_last, IMAGENET_MEAN, IMAGENET_STD).is_contiguous()


def test_constants_are_made_once_and_are_ordinary_tensors():
    """Whoever asks first: a probe of memory on tensors without data, or code in inference mode."""
    values = (0.25, 0.5, 0.125)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        assert isinstance(torch.zeros(1), FakeTensor)
        normalize(torch.zeros(3, 2, 2, dtype=torch.uint8), values, values)
    constant = device_constant(values, torch.device("cpu"))
    assert not isinstance(constant, FakeTensor)
    assert not constant.is_inference()
    assert constant.tolist() == list(values)
    assert device_constant(values, torch.device("cpu")) is constant
