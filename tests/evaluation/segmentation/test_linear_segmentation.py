from dataclasses import replace

import pytest
import torch

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation.linear_segmentation import (
    LinearHead,
    evaluate_linear_segmentation,
    learning_rate,
    train_layer,
)
from selfpatch.evaluation.task import Context
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone, write_ade20k


def quick(**settings) -> LinearSegmentation:
    return LinearSegmentation(
        **{
            "image_size": 32,
            "stride": 20,
            "steps": 60,
            "batch_size": 4,
            "lr": 0.05,
            "warmup_steps": 5,
            "photometric_distortion": False,
            **settings,
        }
    )


def test_colours_are_separable_and_a_blind_backbone_is_not(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path, size=(64, 96), cell=(32, 32)))
    backbone = ColorBackbone()
    # Channel dropout on three channels takes whole colours away.
    seeing = evaluate_linear_segmentation(backbone, data, quick(dropout=0.0), Context(tmp_path / "seeing"))
    assert seeing.metrics["mIoU"] > 0.9 and seeing.metrics["aAcc"] > 0.95
    assert [shown.prediction.shape for shown in seeing.predictions] == [(64, 96)] * 3
    assert backbone.training and not backbone.frozen.training
    protocol = quick(steps=10, warmup_steps=0)
    blind = evaluate_linear_segmentation(BlindBackbone(), data, protocol, Context(tmp_path / "blind"))
    assert blind.metrics["mIoU"] < 0.3


def test_the_same_seed_gives_the_same_head_and_global_random_numbers_stay(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path))

    def weights(out, **settings):
        protocol = quick(steps=4, warmup_steps=1, **settings)
        return train_layer(ColorBackbone(), data, protocol, Context(tmp_path / out)).state_dict()

    torch.manual_seed(0)
    expected_next = torch.rand(3)
    torch.manual_seed(0)
    first = weights("1")
    assert torch.equal(torch.rand(3), expected_next)
    second, other = weights("2"), weights("3", seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_training_survives_batches_without_a_scored_pixel(tmp_path):
    root = write_ade20k(tmp_path, num_train=1)
    data = read_segmentation(root)
    data.read_mask = lambda item: torch.full(item.size, IGNORED, dtype=torch.uint8).numpy()
    head = train_layer(ColorBackbone(), data, quick(steps=2, warmup_steps=0), Context(tmp_path / "out"))
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


def test_a_layer_that_is_done_is_scored_by_another_stride_and_on_other_images(tmp_path):
    root = write_ade20k(tmp_path / "data")
    out, protocol = Context(tmp_path / "out"), quick(steps=2, warmup_steps=0)
    evaluate_linear_segmentation(ColorBackbone(), read_segmentation(root), protocol, out)
    trained = (out.out / "metrics.jsonl").read_bytes()
    for kind in ("images", "annotations"):
        (root / kind / "validation/validation_0.png").unlink()
    evaluate_linear_segmentation(ColorBackbone(), read_segmentation(root), replace(protocol, stride=32), out)
    assert (out.out / "metrics.jsonl").read_bytes() == trained
    with pytest.raises(ValueError, match="trained otherwise"):
        evaluate_linear_segmentation(ColorBackbone(), read_segmentation(root), replace(protocol, lr=0.1), out)


def test_progress_counts_images(tmp_path):
    calls = []
    context = Context(tmp_path / "out", report=lambda *call: calls.append(call))
    data = read_segmentation(write_ade20k(tmp_path / "data"))
    evaluate_linear_segmentation(ColorBackbone(), data, quick(steps=2, warmup_steps=0), context)
    assert calls == [(1, 3), (2, 3), (3, 3)]
