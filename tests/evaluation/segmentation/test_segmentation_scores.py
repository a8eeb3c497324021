import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.segmentation import segmentation_scores
from selfpatch.evaluation.segmentation.segmentation_scores import ConfusionMeter, upsampled_argmax
from tests.evaluation.labeled_scenes import write_ade20k


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


def test_overlaps_are_those_of_each_image_in_the_order_of_the_split(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path, size=(32, 32)))
    meter, expected = ConfusionMeter(data, torch.device("cpu")), {}
    generator = torch.Generator().manual_seed(0)
    for item in reversed(data.val):
        truth = data.read_mask(item)
        prediction = torch.randint(data.num_classes, truth.shape, generator=generator)
        meter.add(item, truth, prediction)
        scored = truth != IGNORED
        pairs = [((prediction.numpy() == c) & scored, (truth == c) & scored) for c in range(data.num_classes)]
        expected[item] = [[(p & t).sum() for p, t in pairs], [(p | t).sum() for p, t in pairs]]
    scores = meter.scores()
    assert scores.overlaps.tolist() == np.array([expected[item] for item in data.val]).tolist()
    intersection, union = scores.overlaps.sum(dim=0)
    assert scores.metrics["mIoU"] == pytest.approx((intersection / union).mean().item())
