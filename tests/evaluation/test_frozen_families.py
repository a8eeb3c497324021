"""The frozen tasks of clusters, classes and objects on every kind of backbone."""

import pytest
from torch import nn

from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.task import Context
from selfpatch.evaluation.tasks import RUN
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit
from tests.evaluation.boxed_scenes import write_voc
from tests.evaluation.labelled_classes import write_classes
from tests.evaluation.labelled_scenes import write_ade20k

FAMILIES = {
    "class token": lambda: small_vit("class token"),
    "no class token": lambda: small_vit("no class token"),
    "registers": lambda: small_vit("registers"),
    "RoPE and registers": lambda: small_vit("RoPE and registers"),
    "Swin": small_swin,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_ade20k(root / "masks", num_train=1, num_val=2, size=(40, 72))
    write_classes(root / "classes", num_classes=2, num_train=2, num_val=1)
    write_voc(root / "boxes", count=2, size=(72, 136))
    return root


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through(family, data, tmp_path):
    backbone: nn.Module = FAMILIES[family]()
    has_class_token = family not in ("no class token", "Swin")

    protocol = Overclustering(image_size=64, num_clusters=("classes", 5), num_seeds=1, num_restarts=1)
    outcome = RUN["overclustering"](backbone, data / "masks", protocol, Context(tmp_path))
    assert 0 < outcome.metrics["mIoU/K=classes"] <= 1

    protocol = KnnClassification(resize_size=70, image_size=64, num_neighbours=(2,))
    outcome = RUN["knn-classification"](backbone, data / "classes", protocol, Context(tmp_path))
    assert outcome.details["vector_scored"] == ("class_token" if has_class_token else "mean")

    protocol = LinearClassification(resize_size=70, image_size=64, lrs=(0.1,), steps=1, batch_size=2)
    outcome = RUN["linear-classification"](backbone, data / "classes", protocol, Context(tmp_path))
    both = ["class_token", "class_token_and_mean"]
    assert outcome.details["vectors_scored"] == (both if has_class_token else ["mean"])

    # Neither side is square nor whole patches of 14, 16 or 32.
    outcome = RUN["object-discovery"](backbone, data / "boxes", ObjectDiscovery(), Context(tmp_path))
    assert 0 <= outcome.metrics["CorLoc"] <= 1
