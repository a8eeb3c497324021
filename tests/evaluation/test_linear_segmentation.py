import pytest
import torch

from selfpatch.evaluation.datasets.segmentation_folder import SegmentationFolder
from selfpatch.evaluation.linear_segmentation import (
    LinearHead,
    evaluate_linear_segmentation,
    learning_rate,
    train_head,
    training_places,
)
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.task import no_report
from tests.evaluation.labelled_scenes import BlindBackbone, ColorBackbone, write_ade20k


def quick(**settings) -> LinearSegmentation:
    return LinearSegmentation(
        **{
            "image_size": 32,
            "stride": 20,
            "steps": 60,
            "batch_size": 4,
            "lr": 0.05,
            "warmup_steps": 5,
            "distort_colors": False,
            **settings,
        }
    )


def test_colours_are_separable_and_a_blind_backbone_is_not(tmp_path):
    data = SegmentationFolder(write_ade20k(tmp_path, size=(64, 96), cell=(32, 32)))
    backbone = ColorBackbone()
    # Channel dropout on three channels takes whole colours away.
    seeing = evaluate_linear_segmentation(backbone, data, quick(dropout=0.0))
    assert seeing.metrics["mIoU"] > 0.9 and seeing.metrics["aAcc"] > 0.95
    assert [shown.prediction.shape for shown in seeing.predictions] == [(64, 96)] * 3
    assert backbone.training and not backbone.frozen.training
    blind = evaluate_linear_segmentation(BlindBackbone(), data, quick(steps=10, warmup_steps=0))
    assert blind.metrics["mIoU"] < 0.3


def test_the_same_seed_gives_the_same_head_and_global_random_numbers_stay(tmp_path):
    data = SegmentationFolder(write_ade20k(tmp_path))

    def weights(**settings):
        protocol = quick(steps=4, warmup_steps=1, **settings)
        return train_head(ColorBackbone(), data, protocol, device=torch.device("cpu"), report=no_report).state_dict()

    torch.manual_seed(0)
    expected_next = torch.rand(3)
    torch.manual_seed(0)
    first = weights()
    assert torch.equal(torch.rand(3), expected_next)
    second, other = weights(), weights(seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_every_image_is_seen_once_an_epoch_though_batches_are_larger():
    places = [place for batch in training_places(5, quick(steps=4, batch_size=8, warmup_steps=0)) for place in batch]
    assert [epoch for epoch, _ in places] == [i // 5 for i in range(32)]
    orders = [[index for e, index in places if e == epoch] for epoch in range(6)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_training_survives_batches_without_a_scored_pixel(tmp_path):
    root = write_ade20k(tmp_path, num_train=1)
    data = SegmentationFolder(root)
    data.read_mask = lambda item: torch.full(item.size, IGNORED, dtype=torch.uint8).numpy()
    head = train_head(
        ColorBackbone(), data, quick(steps=2, warmup_steps=0), device=torch.device("cpu"), report=no_report
    )
    assert head.linear.weight.isfinite().all()


def test_learning_rates():
    one_cycle, poly = LinearSegmentation(), LinearSegmentation(schedule="poly")
    for protocol in (one_cycle, poly):
        assert learning_rate(0, protocol) == pytest.approx(1e-9)
        assert learning_rate(750, protocol) == pytest.approx(1e-3 * (0.5 + 0.5e-6) * (1 - 750 / 40_000))
    assert learning_rate(1500, poly) == pytest.approx(1e-3 * (1 - 1500 / 40_000))
    assert learning_rate(39_999, poly) == pytest.approx(1e-3 / 40_000)
    assert learning_rate(19_999, one_cycle) == pytest.approx(0.5e-3)
    assert learning_rate(39_999, one_cycle) == pytest.approx(0, abs=1e-12)


def test_head_drops_whole_channels_and_starts_small():
    torch.manual_seed(0)
    head = LinearHead(512, 7, dropout=0.5)
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.05) and head.linear.bias.abs().max() == 0
    dropped = head.dropout(torch.ones(2, 512, 3, 3)).flatten(2)
    assert (dropped.std(dim=-1) == 0).all() and 0.4 < (dropped[..., 0] == 0).float().mean() < 0.6


def test_progress_counts_steps_and_then_images(tmp_path):
    data = SegmentationFolder(write_ade20k(tmp_path))
    calls = []
    evaluate_linear_segmentation(
        ColorBackbone(), data, quick(steps=2, warmup_steps=0), report=lambda *call: calls.append(call)
    )
    assert calls == [(i, 5) for i in range(1, 6)]
