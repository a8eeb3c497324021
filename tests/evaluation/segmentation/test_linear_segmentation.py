import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.segmentation import linear_segmentation
from selfpatch.evaluation.segmentation.linear_segmentation import (
    LinearHead,
    center_pad,
    crop_size,
    evaluate_linear_segmentation,
    learning_rate,
    train_heads,
    upsampled_logits,
)
from selfpatch.evaluation.task import EvalContext
from selfpatch.output.metric_logger import read_metrics
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone, write_ade20k, write_stripes


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
    seeing = evaluate_linear_segmentation(backbone, data, quick(dropout=0.0), EvalContext(tmp_path / "seeing"))
    assert seeing.metrics["mIoU"] > 0.9 and seeing.metrics["aAcc"] > 0.95
    assert [shown.prediction.shape for shown in seeing.predictions] == [(64, 96)] * 3
    assert backbone.training and not backbone.frozen.training
    protocol = quick(steps=10, warmup_steps=0)
    blind = evaluate_linear_segmentation(BlindBackbone(), data, protocol, EvalContext(tmp_path / "blind"))
    assert blind.metrics["mIoU"] < 0.3


# Patches of one pixel: nothing is blurred, so that a score can be said beforehand.
EXACT = {"image_size": 16, "stride": 10, "scale": (1.0, 1.0), "dropout": 0.0, "steps": 150, "eval_interval": None}


def test_separable_classes_score_exactly_1(tmp_path):
    root = write_stripes(tmp_path / "data", [(5, 0, 0), (4, 1, 1), (4, 2, 2), (3, 3, 3)], width=24)
    data = read_segmentation(root)
    scores = evaluate_linear_segmentation(ColorBackbone((1, 1)), data, quick(**EXACT), EvalContext(tmp_path / "out"))
    assert [scores.metrics[name] for name in ("mIoU", "mIoU-matched", "aAcc", "mAcc")] == [1.0] * 4


def test_of_two_classes_that_look_alike_the_more_frequent_one_is_predicted(tmp_path):
    """Classes 0 and 1 have 8 and 2 of 16 rows in one color: IoU 8/10 and 0; the other two are found: IoU 1."""
    root = write_stripes(tmp_path / "data", [(8, 0, 0), (2, 1, 0), (3, 2, 2), (3, 3, 3)])
    data = read_segmentation(root)
    scores = evaluate_linear_segmentation(ColorBackbone((1, 1)), data, quick(**EXACT), EvalContext(tmp_path / "out"))
    assert [scores.metrics[f"IoU/{name}"] for name in data.class_names] == [0.8, 0.0, 1.0, 1.0]
    assert scores.metrics["mIoU"] == pytest.approx(2.8 / 4, abs=1e-12)
    assert scores.metrics["aAcc"] == 14 / 16 and scores.metrics["mAcc"] == 3 / 4


class Watching(ColorBackbone):
    """Keeps what it sees."""

    def __init__(self, patch_size):
        super().__init__(patch_size)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return super().forward(images)


@pytest.mark.parametrize(
    ("patch_fit", "side", "padding"), [("center_pad", 32 + 10, 5), ("floor", 28, 0)], ids=("center_pad", "floor")
)
def test_crops_and_windows_of_a_size_that_is_no_multiple_of_the_patch(tmp_path, patch_fit, side, padding):
    """At patch 14 a crop of 32 px is padded to 42, 5 px on each side (512 to 518 by 3); or it is one of 28 px."""
    data = read_segmentation(write_ade20k(tmp_path / "data", size=(32, 32), num_val=1))
    backbone = Watching((14, 14))
    protocol = quick(steps=2, warmup_steps=0, scale=(1.0, 1.0), patch_fit=patch_fit)
    scores = evaluate_linear_segmentation(backbone, data, protocol, EvalContext(tmp_path / "out"))
    num_windows = 1 if patch_fit == "center_pad" else 4
    assert [images.shape for images in backbone.seen] == [(4, 3, side, side)] * 2 + [(num_windows, 3, side, side)]
    assert scores.predictions[0].prediction.shape == (32, 32)
    for images in backbone.seen:
        inside = torch.zeros(side, side, dtype=torch.bool)
        inside[padding : side - padding, padding : side - padding] = True
        assert (images[:, :, ~inside] == 0).all() and (images[:, :, inside] != 0).all()


def test_padding_is_centered_and_an_odd_pixel_goes_right_and_below():
    images = torch.ones(1, 3, 512, 513)
    padded = center_pad(images, (14, 14))
    assert padded.shape == (1, 3, 518, 518)
    assert torch.equal(padded[:, :, 3:-3, 2:-3], images) and padded.sum() == images.sum()
    for patch in (8, 16):
        assert center_pad(torch.ones(1, 3, 512, 512), (patch, patch)).shape == (1, 3, 512, 512)
    dinov2, dinov3 = (TASKS["linear-segmentation"].presets[name] for name in ("dinov2", "dinov3"))
    assert [crop_size(dinov2, (patch, patch)) for patch in (8, 14, 16)] == [(512, 512)] * 3
    assert crop_size(dinov3, (14, 14)) == (504, 504)


def test_a_map_of_padded_patches_is_stretched_over_the_window(tmp_path):
    """As mmsegmentation resizes the logits to the image, whatever its backbone padded: nothing is cut off."""
    head = LinearHead(1, 1, dropout=0.0).eval()
    torch.nn.init.ones_(head.linear.weight)
    feature_map = torch.arange(9.0).reshape(1, 1, 3, 3)
    logits = upsampled_logits(head, feature_map, size=(32, 32))[0, 0]
    assert logits[0, 0].item() == pytest.approx(0, abs=1e-3) and logits[-1, -1].item() == pytest.approx(8, abs=1e-3)
    assert logits[:16].mean().item() < 4 < logits[16:].mean().item()


def test_the_loss_is_a_mean_over_all_pixels(tmp_path):
    """Logits start at 0, since batch norm makes 0 of equal tokens: ln 4 at each scored pixel, and a half is scored."""
    data = read_segmentation(write_ade20k(tmp_path / "data", size=(32, 32)))
    half = np.full((32, 32), IGNORED, np.uint8)
    half[:16] = np.arange(32) // 8
    data.read_mask = lambda item: half
    context = EvalContext(tmp_path / "out")
    train_heads(BlindBackbone(), data, quick(steps=1, warmup_steps=0, scale=(1.0, 1.0), dropout=0.0), context)
    (line,) = read_metrics(context.out / "metrics.jsonl")
    assert line["loss"] == pytest.approx(math.log(4) / 2, rel=1e-5)


# The best of several validations


def test_the_best_validation_counts_and_the_result_names_it(tmp_path, monkeypatch):
    def rates(step, protocol):  # learns, and then destroys what it learned
        return 0.05 if step < 40 else 50.0

    monkeypatch.setattr(linear_segmentation, "learning_rate", rates)
    root = write_ade20k(tmp_path / "data")
    data = read_segmentation(root)

    def score(out, **settings):
        return evaluate_linear_segmentation(ColorBackbone(), data, quick(**settings), EvalContext(tmp_path / out))

    alone = {n: score(f"until {n}", steps=n, eval_interval=None).metrics["mIoU"] for n in (20, 40, 50)}
    assert alone[40] > max(alone[20], alone[50])
    scores = score("out", steps=50, eval_interval=20)
    assert scores.metrics["mIoU"] == alone[40]
    assert scores.details == {"best_step": 40, "mIoU_by_step": {str(n): value for n, value in alone.items()}}
    # Scored again, and by another stride, without another step of training.
    trained = (tmp_path / "out/metrics.jsonl").read_bytes()
    again = score("out", steps=50, eval_interval=20)
    assert (again.metrics, again.details) == (scores.metrics, scores.details)
    score("out", steps=50, eval_interval=20, stride=32)
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == trained
    output = linear_segmentation.run(
        ColorBackbone(), root, quick(steps=50, eval_interval=20), EvalContext(tmp_path / "out")
    )
    assert output.details["best_step"] == 40
    (tmp_path / "out/heads/step-00000020.safetensors").unlink()
    with pytest.raises(ValueError, match="step-00000020.safetensors, the layer after 20 steps, is gone"):
        score("out", steps=50, eval_interval=20)


def test_a_training_that_was_stopped_between_validations_ends_as_one_that_was_not(tmp_path, monkeypatch):
    data = read_segmentation(write_ade20k(tmp_path / "data"))
    protocol = quick(steps=6, warmup_steps=1, eval_interval=2)
    whole = evaluate_linear_segmentation(ColorBackbone(), data, protocol, EvalContext(tmp_path / "whole"))

    def stop(backbone, images):
        if len(seen) == 5:
            raise RuntimeError("killed")
        seen.append(images)
        return patch_features(backbone, images)

    seen = []
    patch_features = linear_segmentation.patch_features
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(linear_segmentation, "patch_features", stop)
        evaluate_linear_segmentation(ColorBackbone(), data, protocol, EvalContext(tmp_path / "out"))
    gone_on = evaluate_linear_segmentation(ColorBackbone(), data, protocol, EvalContext(tmp_path / "out"))
    assert (gone_on.metrics, gone_on.details) == (whole.metrics, whole.details)


def test_the_same_seed_gives_the_same_head_and_global_random_numbers_stay(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path))

    def weights(out, **settings):
        protocol = quick(steps=4, warmup_steps=1, **settings)
        return train_heads(ColorBackbone(), data, protocol, EvalContext(tmp_path / out))[4].state_dict()

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
    head = train_heads(ColorBackbone(), data, quick(steps=2, warmup_steps=0), EvalContext(tmp_path / "out"))[2]
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
    out, protocol = EvalContext(tmp_path / "out"), quick(steps=2, warmup_steps=0)
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
    context = EvalContext(tmp_path / "out", report=lambda *call: calls.append(call))
    data = read_segmentation(write_ade20k(tmp_path / "data"))
    evaluate_linear_segmentation(ColorBackbone(), data, quick(steps=2, warmup_steps=0), context)
    assert calls == [(1, 3), (2, 3), (3, 3)]
