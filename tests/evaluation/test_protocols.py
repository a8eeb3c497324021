import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfpatch.errors import UserError
from selfpatch.evaluation.protocols import TASKS, protocol_name
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet


def test_importing_them_needs_no_torch():
    code = "import sys, selfpatch.evaluation.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_presets_differ_where_their_sources_do():
    dinov3, dinov2 = (TASKS["linear-segmentation"].presets[name] for name in ("dinov3", "dinov2"))
    assert (dinov3.dropout, dinov3.weight_decay, dinov3.schedule) == (0.1, 1e-3, "one_cycle")
    assert (dinov2.dropout, dinov2.weight_decay, dinov2.schedule) == (0.0, 1e-4, "poly")
    assert (dinov2.lr, dinov2.steps, dinov2.batch_size, dinov2.warmup_steps) == (1e-3, 40_000, 16, 1500)
    # DINOv3's YAML sets the clipping to infinity, and reports the best of 40,000 / 5,000 validations.
    assert dinov3.clip_norm == dinov2.clip_norm == 0
    assert (dinov3.eval_interval, dinov2.eval_interval) == (5_000, None)
    assert (dinov3.photometric_style, dinov2.photometric_style) == ("dinov3", "mmseg")
    assert (dinov3.patch_fit, dinov2.patch_fit) == ("floor", "center_pad")


def test_decoders_are_trained_as_published():
    fpn, uper = TASKS["semantic-fpn"].presets["paper-40k"], TASKS["upernet"].presets["paper-160k"]
    for protocol, steps in ((fpn, 40_000), (uper, 160_000)):
        assert (protocol.steps, protocol.batch_size, protocol.lr, protocol.weight_decay) == (steps, 16, 6e-5, 0.01)
        assert (protocol.warmup_steps, protocol.warmup_start, protocol.power) == (1500, 1e-6, 1.0)
        assert (protocol.out_indices, protocol.drop_path, protocol.dropout) == ((2, 5, 8, 11), 0.1, 0.1)
        assert (protocol.image_size, protocol.long_side, protocol.inference) == (512, 2048, "whole")
        assert (protocol.scale, protocol.cat_max_ratio, protocol.hflip_prob) == ((0.5, 2.0), 0.75, 0.5)
    assert (fpn.fpn_channels, fpn.head_channels) == (256, 128)
    assert (uper.neck_scales, uper.head_channels, uper.pool_scales) == ((4, 2, 1, 0.5), 512, (1, 2, 3, 6))
    assert (uper.auxiliary_weight, uper.auxiliary_channels) == (0.4, 256)


@pytest.mark.parametrize(("task", "preset"), [(task, preset) for task in TASKS for preset in TASKS[task].presets])
def test_departures_from_the_program_stand_in_the_documentation(task, preset):
    documented = " ".join((Path(__file__).parents[2] / "docs/evaluation.md").read_text().split())
    for sentence in getattr(TASKS[task].presets[preset], "differs", ()):
        if preset != "quick" or not sentence[0].isdigit():  # its own batch
            assert f"*{sentence}*" in documented


def test_departures_follow_the_settings():
    presets = TASKS["in-context-segmentation"].presets
    assert [len(presets[name].differs) for name in ("hummingbird", "hummingbird-program")] == [7, 2]
    presets = TASKS["linear-classification"].presets
    assert presets["dinov2-one-gpu"].differs[-1] == "128 images per step; published are 128 on each of 8 GPUs"
    assert len(presets["dinov2"].differs) == 2


def test_what_changes_no_number_changes_no_name():
    assert protocol_name("semantic-fpn", SemanticFPN(recompute=True)) == "paper-40k"
    assert protocol_name("semantic-fpn", SemanticFPN(inference="slide")) == "custom"


def test_a_number_goes_by_the_name_of_its_protocol_only_with_all_its_settings():
    assert protocol_name("linear-segmentation", LinearSegmentation()) == "dinov3"
    assert protocol_name("linear-segmentation", LinearSegmentation(steps=39_999)) == "custom"


@pytest.mark.parametrize(
    ("protocol", "settings", "message"),
    [
        (InContextSegmentation, {"memory_size": 0}, "memory-size is 0; it must be at least 1"),
        (InContextSegmentation, {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        (InContextSegmentation, {"max_images": -1}, "max-images is -1; it must be at least 1"),
        (InContextSegmentation, {"seed": -1}, "seed is -1; it must be in [0, 2147483647]"),
        (LinearSegmentation, {"seed": 2**31}, "seed is 2147483648; it must be in [0, 2147483647]"),
        (LinearSegmentation, {"stride": 513}, "stride is 513; it must be at most image-size, .* 512"),
        (LinearSegmentation, {"scale": (2.0, 0.5)}, "scale is (2.0, 0.5); the numbers must be in ascending order"),
        (LinearSegmentation, {"hflip_prob": 1.5}, "hflip-prob is 1.5; it must be a probability in [0, 1]"),
        (LinearSegmentation, {"dropout": 1.0}, "dropout is 1.0; it must be a probability in [0, 1)"),
        (LinearSegmentation, {"cat_max_ratio": 0.0}, "cat-max-ratio is 0.0; it must be in (0, 1]"),
        (LinearSegmentation, {"weight_decay": -0.1}, "weight-decay is -0.1; it must be at least 0"),
        (LinearSegmentation, {"long_side": 0}, "long-side is 0; it must be at least 1"),
        (LinearSegmentation, {"steps": 100}, "warmup-steps is 1500; it must be less than steps, 100"),
        (
            SemanticFPN,
            {"out_indices": (2, 5, 11, 8)},
            "out-indices is (2, 5, 11, 8); the numbers must be in ascending order",
        ),
        (SemanticFPN, {"out_indices": (2, 5, 8, 12)}, "out-indices is (2, 5, 8, 12); each must be in [0, 11]"),
        (SemanticFPN, {"long_side": 500}, "long-side is 500; it must be at least image-size, .* 512"),
        (SemanticFPN, {"stride": 513}, "stride is 513; it must be at most image-size, .* 512"),
        (SemanticFPN, {"drop_path": 1.0}, "drop-path is 1.0; it must be a probability in [0, 1)"),
        (SemanticFPN, {"scale": (0.0, 1.0)}, "scale is (0.0, 1.0); each must be above 0"),
        (SemanticFPN, {"hflip_prob": -0.1}, "hflip-prob is -0.1; it must be a probability in [0, 1]"),
        (SemanticFPN, {"cat_max_ratio": 1.1}, "cat-max-ratio is 1.1; it must be in (0, 1]"),
        (SemanticFPN, {"warmup_start": 2.0}, "warmup-start is 2.0; it must be in [0, 1]"),
        (SemanticFPN, {"clip_norm": -1.0}, "clip-norm is -1.0; it must be at least 0"),
        (SemanticFPN, {"steps": 100}, "warmup-steps is 1500; it must be less than steps, 100"),
        (SemanticFPN, {"fpn_channels": 0}, "fpn-channels is 0; it must be at least 1"),
        (UPerNet, {"neck_scales": (4, 2, 1, 0)}, "neck-scales is (4, 2, 1, 0); each must be above 0"),
        (UPerNet, {"pool_scales": ()}, "pool-scales is (); give at least one"),
        (UPerNet, {"auxiliary_weight": -0.4}, "auxiliary-weight is -0.4; it must be at least 0"),
        (UPerNet, {"auxiliary_level": 4}, "auxiliary-level is 4; it must be in [0, 3]"),
        (UPerNet, {"batch_size": 1}, "batch-size is 1; it must be at least 2"),
        (KnnClassification, {"image_size": 300}, "resize-size is 256; it must be at least image-size, .* 300"),
        (KnnClassification, {"num_neighbors": (5, 0)}, "num-neighbors is (5, 0); each must be at least 1"),
        (KnnClassification, {"num_neighbors": (5, 5)}, "num-neighbors is (5, 5); give each of them once"),
        (LinearClassification, {"lrs": ()}, "lrs is (); give at least one"),
        (LinearClassification, {"lrs": (0.1, 0.0)}, "lrs is (0.1, 0.0); each must be above 0"),
        (LinearClassification, {"vectors": ("mean", "mean")}, "vectors is ('mean', 'mean'); give each of them once"),
        (LinearClassification, {"crop_scale": (0.5, 1.5)}, "crop-scale is (0.5, 1.5); each must be in (0, 1]"),
        (LinearClassification, {"momentum": 1.0}, "momentum is 1.0; it must be in [0, 1)"),
        (MaskRCNN, {"epochs": float("inf")}, "epochs is inf; it must be finite and above 0"),
        (MaskRCNN, {"epochs": float("nan")}, "epochs is nan; it must be finite and above 0"),
        (MaskRCNN, {"decay_epochs": (8, float("inf"))}, "decay-epochs is (8, inf); each must be finite and above 0"),
        (MaskRCNN, {"decay_epochs": (8.0, 0.0)}, "decay-epochs is (8.0, 0.0); each must be above 0"),
        (ObjectDiscovery, {"num_candidates": 0}, "num-candidates is 0; it must be at least 1"),
        (ObjectDiscovery, {"min_iou": 0.0}, "min-iou is 0.0; it must be in (0, 1]"),
        (Overclustering, {"num_seeds": 0}, "num-seeds is 0; it must be at least 1"),
        (Overclustering, {"num_clusters": ()}, "num-clusters is (); give at least one"),
        (Overclustering, {"num_clusters": (5, 5)}, "num-clusters is (5, 5); give each of them once"),
        (Overclustering, {"num_clusters": ("classes", 1)}, "num-clusters is ('classes', 1); each must be at least 2"),
    ],
)
def test_ranges(protocol, settings, message):
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(UserError, match=pattern):
        protocol(**settings)


def test_every_seed_fits_the_random_numbers_of_the_loop():
    """training/loop.py seeds torch with (seed * 1,000,003 + step) * 4,096 + rank, which takes 64 bits."""
    largest = 2**31 - 1
    with_seed = [preset for task in TASKS.values() for preset in task.presets.values() if hasattr(preset, "seed")]
    assert len(with_seed) > 10
    for preset in with_seed:
        assert replace(preset, seed=largest).seed == largest
        for seed in (-1, largest + 1, 5_000_000_000, 2**63):
            with pytest.raises(UserError, match=f"^seed is {seed}; it must be in"):
                replace(preset, seed=seed)
    torch.manual_seed((largest * 1_000_003 + 10_000_000) * 4096 + 4095)
