import pytest
import torch
import torch.nn.functional as F

from selfpatch.evaluation.segmentation import segmentation_scores
from selfpatch.evaluation.segmentation.segmentation_scores import upsampled_argmax


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("at_once", [0.5, 1, 3, 100])
def test_classes_a_few_at_a_time_equal_those_of_all_at_once(num_classes, at_once, monkeypatch):
    size = (21, 34)
    maps = torch.randn(num_classes, 5, 6, generator=torch.Generator().manual_seed(0))
    maps[-1] = maps[0]  # everywhere as high as the first, which wins
    interpolate = F.interpolate
    expected = interpolate(maps[None], size=size, mode="bilinear")[0].argmax(dim=0)
    held = []

    def counted(*args, **settings):
        result = interpolate(*args, **settings)
        held.append(result.numel())
        return result

    monkeypatch.setattr(segmentation_scores, "MAX_UPSAMPLED", int(at_once * 21 * 34))
    monkeypatch.setattr(F, "interpolate", counted)
    assert torch.equal(upsampled_argmax(maps, size), expected)
    assert max(held) <= max(at_once, 1) * 21 * 34
