import subprocess
import sys

import pytest

from selfpatch.evaluation.protocols import TASKS, protocol_name
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.linear_segmentation import LinearSegmentation
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering


def test_importing_them_needs_no_torch():
    code = "import sys, selfpatch.evaluation.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_presets_differ_where_their_sources_do():
    dinov3, dinov2 = (TASKS["linear-segmentation"].presets[name] for name in ("dinov3", "dinov2"))
    assert (dinov3.dropout, dinov3.weight_decay, dinov3.schedule) == (0.1, 1e-3, "one_cycle")
    assert (dinov2.dropout, dinov2.weight_decay, dinov2.schedule) == (0.0, 1e-4, "poly")
    assert (dinov2.lr, dinov2.steps, dinov2.batch_size, dinov2.warmup_steps) == (1e-3, 40_000, 16, 1500)


def test_a_number_goes_by_the_name_of_its_protocol_only_with_all_its_settings():
    assert protocol_name("linear-segmentation", LinearSegmentation()) == "dinov3"
    assert protocol_name("linear-segmentation", LinearSegmentation(steps=39_999)) == "custom"


@pytest.mark.parametrize(
    ("protocol", "settings", "message"),
    [
        (InContextSegmentation, {"memory_size": 0}, "memory-size is 0; it must be above 0"),
        (InContextSegmentation, {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        (InContextSegmentation, {"max_images": -1}, "max-images is -1; it must be above 0"),
        (InContextSegmentation, {"seed": -1}, "seed is -1; it cannot be negative"),
        (LinearSegmentation, {"stride": 513}, "stride is 513 with windows of 512 px; at most 512 leaves no gaps"),
        (LinearSegmentation, {"scale": (2.0, 0.5)}, r"scale is \(2.0, 0.5\); 0 < low <= high is needed"),
        (LinearSegmentation, {"flip_prob": 1.5}, r"flip-prob is 1.5; it is a probability in \[0, 1\]"),
        (LinearSegmentation, {"dropout": 1.0}, r"dropout is 1.0; it is a probability in \[0, 1\)"),
        (LinearSegmentation, {"max_class_share": 0.0}, r"max-class-share is 0.0; it must be in \(0, 1\]"),
        (LinearSegmentation, {"weight_decay": -0.1}, "weight-decay is -0.1; it cannot be negative"),
        (LinearSegmentation, {"steps": 100}, "warmup-steps is 1500 with steps 100; make it shorter than the training"),
        (
            KnnClassification,
            {"image_size": 300},
            "resize-size is 256, less than image-size 300, which is cut out of it",
        ),
        (KnnClassification, {"num_neighbours": (5, 0)}, r"num-neighbours is \(5, 0\); give one number at least, all"),
        (KnnClassification, {"num_neighbours": (5, 5)}, r"num-neighbours is \(5, 5\); give each number once"),
        (LinearClassification, {"lrs": ()}, "lrs is empty; give one at least"),
        (LinearClassification, {"lrs": (0.1, 0.0)}, r"lrs is \(0.1, 0.0\); all must be above 0"),
        (LinearClassification, {"vectors": ("mean", "mean")}, r"vectors is \('mean', 'mean'\); give each once"),
        (
            LinearClassification,
            {"crop_scale": (0.5, 1.5)},
            r"crop-scale is \(0.5, 1.5\); 0 < low <= high <= 1 is needed",
        ),
        (LinearClassification, {"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
        (ObjectDiscovery, {"num_candidates": 0}, "num-candidates is 0; it must be above 0"),
        (ObjectDiscovery, {"min_iou": 0.0}, r"min-iou is 0.0; it must be in \(0, 1\]"),
        (Overclustering, {"num_seeds": 0}, "num-seeds is 0; it must be above 0"),
        (Overclustering, {"num_clusters": ()}, "num-clusters is empty; give one K at least, or classes"),
        (Overclustering, {"num_clusters": (5, 5)}, r"num-clusters is \(5, 5\); give each K once"),
        (Overclustering, {"num_clusters": ("classes", 1)}, r"num-clusters is \('classes', 1\); two clusters are the"),
    ],
)
def test_ranges(protocol, settings, message):
    with pytest.raises(ValueError, match=message):
        protocol(**settings)
