from dataclasses import replace

import pytest
import torch

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.metrics import IGNORED, mean_cross_entropy
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.linear_segmentation import LeopartSegmentation
from selfpatch.evaluation.segmentation.leopart_segmentation import evaluate_leopart, num_steps_per_epoch
from selfpatch.evaluation.task import EvalContext
from selfpatch.output.metric_logger import read_metrics
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone, write_ade20k, write_stripes


def test_colours_are_separable_on_small_maps_and_a_blind_backbone_is_not(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path / "data", size=(64, 96), cell=(32, 32)))
    protocol = LeopartSegmentation(
        image_size=64, mask_size=20, eval_mask_size=20, epochs=40, drop_at=30, batch_size=3, lr=0.5
    )
    backbone = ColorBackbone()
    seeing = evaluate_leopart(backbone, data, protocol, EvalContext(tmp_path / "seeing"))
    assert seeing.metrics["mIoU"] > 0.8
    assert [shown.truth.shape for shown in seeing.predictions] == [(20, 20)] * 3
    assert backbone.training and not backbone.frozen.training
    blind = evaluate_leopart(BlindBackbone(), data, protocol, EvalContext(tmp_path / "blind"))
    assert blind.metrics["mIoU"] < 0.3
    rates = {line["step"]: line["lr"] for line in read_metrics(tmp_path / "seeing" / "metrics.jsonl")}
    assert (rates[60], rates[70], rates[80]) == (0.5, 0.05, 0.05)  # 2 steps an epoch, a tenth after 30 epochs


def test_the_preset_is_the_training_on_two_gpus_and_the_final_score():
    """10,582 images of Pascal VOC's trainaug, 60 on each of two GPUs: 88 steps an epoch, 2,200 in all."""
    leopart = TASKS["linear-segmentation"].presets["leopart"]
    assert leopart.epochs * num_steps_per_epoch(10_582, leopart) == 2_200
    assert (leopart.batch_size, leopart.mask_size, leopart.eval_mask_size) == (120, 100, 448)
    assert num_steps_per_epoch(7, leopart) == 1


def test_separable_stripes_score_exactly_1_on_masks_larger_than_the_training_maps(tmp_path):
    data = read_segmentation(write_stripes(tmp_path / "data", [(4, 0, 0), (4, 1, 1), (4, 2, 2), (4, 3, 3)]))
    protocol = LeopartSegmentation(
        image_size=16, mask_size=8, eval_mask_size=16, crop_area=(1.0, 1.0), epochs=400, drop_at=400, lr=0.3
    )
    scores = evaluate_leopart(ColorBackbone((1, 1)), data, protocol, EvalContext(tmp_path / "out"))
    assert scores.metrics["mIoU"] == scores.metrics["aAcc"] == 1.0
    assert [shown.truth.shape for shown in scores.predictions] == [(16, 16)]
    # Training does not depend on the size of the score: the layer that is done is scored at another one.
    trained = (tmp_path / "out/metrics.jsonl").read_bytes()
    larger = evaluate_leopart(
        ColorBackbone((1, 1)), data, replace(protocol, eval_mask_size=32), EvalContext(tmp_path / "out")
    )
    assert [shown.prediction.shape for shown in larger.predictions] == [(32, 32)]
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == trained


def test_the_loss_is_a_mean_over_scored_pixels_and_0_without_any():
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    masks[0, :2] = IGNORED
    scored = masks != IGNORED
    expected = -logits.log_softmax(dim=1).permute(0, 2, 3, 1)[scored].gather(1, masks[scored][:, None]).mean()
    torch.testing.assert_close(mean_cross_entropy(logits, masks), expected)
    assert mean_cross_entropy(logits, torch.full_like(masks, IGNORED)) == 0


def test_a_layer_that_is_done_is_scored_on_other_images(tmp_path):
    root, out = write_ade20k(tmp_path / "data"), EvalContext(tmp_path / "out")
    protocol = LeopartSegmentation(image_size=32, mask_size=10, epochs=1, batch_size=3)
    evaluate_leopart(ColorBackbone(), read_segmentation(root), protocol, out)
    for kind in ("images", "annotations"):
        (root / kind / "validation/validation_0.png").unlink()
    assert len(evaluate_leopart(ColorBackbone(), read_segmentation(root), protocol, out).predictions) == 2
    (root / "images/training/training_0.png").write_bytes((root / "images/training/training_1.png").read_bytes() + b"0")
    with pytest.raises(ValueError, match=r"trained otherwise \(then -> now\):\n  data.files: "):
        evaluate_leopart(ColorBackbone(), read_segmentation(root), protocol, out)
