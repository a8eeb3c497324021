from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.backbones.backbone import Tokens
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.evaluation import frozen_tasks
from selfpatch.evaluation.classification.linear_classification import LinearLayers, choose_vectors, run, train_layers
from selfpatch.evaluation.datasets.class_folder import ClassFolder
from selfpatch.evaluation.protocols import TASKS, protocol_name
from selfpatch.evaluation.protocols.frozen_tasks import FrozenTasks
from selfpatch.evaluation.protocols.linear_classification import LinearClassification
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.task import EvalContext
from tests.evaluation.boxed_scenes import ContrastBackbone
from tests.evaluation.labeled_classes import COLORS, write_class, write_classes
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone
from tests.reference import plain_linear_classification as plain

SMALL = {"resize_size": 16, "image_size": 16, "lrs": (1.0, 0.01), "steps": 30, "batch_size": 16}
TOKENS = Tokens(None, torch.zeros(1, 4, 3), (2, 2))


def classify(root, out, backbone=None, report=lambda *_: None, **settings):
    protocol = LinearClassification(**{**SMALL, **settings})
    return run(backbone or ColorBackbone(), root, protocol, EvalContext(out, report=report))


# 1. Training


def trained(data: ClassFolder, out, **settings) -> LinearLayers:
    protocol = LinearClassification(**{**SMALL, **settings})
    torch.manual_seed(0)
    layers = LinearLayers(TOKENS, ("mean",), protocol.lrs, data.num_classes)
    train_layers(layers, ColorBackbone().eval(), data, protocol, EvalContext(out), size=(16, 16))
    return layers


def test_equals_a_restatement_in_numpy(tmp_path):
    # Every crop of an image of one colour is that colour.
    for label, name in enumerate("abcd"):
        write_class(tmp_path / "data" / name, label, 4, noise=0)
    data = ClassFolder(tmp_path / "data")
    layers = trained(data, tmp_path / "out", batch_size=6, steps=7, momentum=0.8, lrs=(0.5, 2.0))

    sampler = EpochSampler(len(data.train), 1, 0)
    labels = [
        [data.train[sampler.indices(position)[0]].label for position in range(6 * i, 6 * i + 6)] for i in range(7)
    ]
    vectors = np.array(COLORS[:4]) / 255 * 2 - 1  # as ColorBackbone's images are normalised
    torch.manual_seed(0)
    start = LinearLayers(TOKENS, ("mean",), (0.5, 2.0), 4)
    for (_, lr), begun, layer in zip(layers.grid, start.layers, layers.layers, strict=True):
        weight, bias = (p.detach().double().numpy() for p in (begun.weight, begun.bias))
        assert not bias.any() and 0.003 < weight.std() < 0.03
        weight, bias = plain.train(weight, bias, [(vectors[of_step], of_step) for of_step in labels], lr * 6 / 256, 0.8)
        assert np.allclose(layer.weight.detach(), weight, atol=1e-5)
        assert np.allclose(layer.bias.detach(), bias, atol=1e-5)


def test_layers_do_not_see_each_other(tmp_path):
    data = ClassFolder(write_classes(tmp_path / "data", num_classes=3))
    alone = trained(data, tmp_path / "alone", lrs=(0.1,), steps=5)
    beside = trained(data, tmp_path / "beside", lrs=(0.1, 50.0), steps=5)
    assert torch.equal(alone.layers[0].weight, beside.layers[0].weight)


def test_vectors_of_the_grid():
    assert choose_vectors(("auto",), has_class_token=True) == ("class_token", "class_token_and_mean")
    assert choose_vectors(("auto",), has_class_token=False) == ("mean",)
    assert choose_vectors(("mean", "auto", "class_token"), has_class_token=True) == (
        "mean", "class_token", "class_token_and_mean",
    )  # fmt: skip
    with pytest.raises(ValueError, match="vector is class_token, but this model has no class token"):
        choose_vectors(("auto", "class_token"), has_class_token=False)
    tokens = Tokens(torch.ones(2, 3), torch.ones(2, 4, 3), (2, 2))
    layers = LinearLayers(tokens, ("class_token", "class_token_and_mean"), (0.1, 0.2), 5)
    assert [layer.in_features for layer in layers.layers] == [3, 3, 6, 6]
    assert [logits.shape for logits in layers(tokens)] == [(2, 5)] * 4


def test_the_default_is_the_published_protocol():
    presets = TASKS["linear-classification"].presets
    default = next(iter(presets.values()))
    assert protocol_name("linear-classification", default) == "dinov2"
    # DINOv2: 12,500 iterations of 128 images on each of 8 GPUs are 12.8 million, 10 epochs of ImageNet.
    assert default.batch_size * default.steps == 12_800_000
    assert presets["dinov2-one-gpu"] == replace(default, batch_size=128)
    # 13 learning rates of 2 vectors, as the last block's share of its grid; the mean alone without a class token.
    for cls_token, num_layers in ((torch.zeros(1, 3), 26), (None, 13)):
        tokens = TOKENS._replace(cls_token=cls_token)
        vectors = choose_vectors(default.vectors, has_class_token=cls_token is not None)
        assert len(LinearLayers(tokens, vectors, default.lrs, 2).layers) == num_layers


def test_frozen_tasks_take_the_published_protocol(tmp_path, monkeypatch):
    seen = {}

    def run_task(task, backbone, data, protocol, context):
        seen[task] = protocol
        return Result(task, {"name": ""}, {"top-1": 1.0}, "", "", 0.0, {})

    root = write_classes(tmp_path / "data", num_classes=2)
    tasks = ("linear-classification",)
    monkeypatch.setattr(frozen_tasks, "run_task", run_task)
    frozen_tasks.run(ContrastBackbone(), root, FrozenTasks(tasks=tasks), EvalContext(tmp_path / "out"))
    assert seen["linear-classification"].batch_size == 1024


# 2. The whole


def test_a_backbone_that_sees_the_classes_scores_1_and_a_blind_one_does_not(tmp_path):
    root = write_classes(tmp_path / "data")
    calls = []
    outcome = classify(root, tmp_path / "seeing", report=lambda *call: calls.append(call))
    assert list(outcome.metrics) == [
        "top-1", "top-5", "top-1/mean/lr=1", "top-5/mean/lr=1", "top-1/mean/lr=0.01", "top-5/mean/lr=0.01",
    ]  # fmt: skip
    assert outcome.metrics["top-1"] == outcome.metrics["top-1/mean/lr=1"] == 1
    assert outcome.metrics["top-1/mean/lr=0.01"] < 1
    assert outcome.details == {"num_layers": 2, "vectors_scored": ["mean"], "best_vector": "mean", "best_lr": 1}
    assert calls == [(35, 35), (14, 14)]  # checked, scored
    with Image.open(tmp_path / "seeing/pictures/confusion_matrix.png") as picture:
        assert min(picture.size) > 300
    assert classify(root, tmp_path / "blind", BlindBackbone()).metrics["top-1"] == pytest.approx(1 / 7)


def test_goes_on_where_it_was_and_refuses_what_is_not_the_same(tmp_path):
    root = write_classes(tmp_path / "data", num_classes=3)
    first = classify(root, tmp_path / "out", steps=3)
    assert classify(root, tmp_path / "out", steps=3) == first
    with pytest.raises(ValueError, match="holds a head that was trained otherwise"):
        classify(root, tmp_path / "out", steps=3, hflip_prob=0.0)
    # What is scored, and how, may change.
    (root / "val/cat/0.png").unlink()
    assert classify(root, tmp_path / "out", steps=3, resize_size=20).dataset_info["num_val_images"] == 5
    write_class(root / "train/cat/more", 2, 1)
    with pytest.raises(ValueError, match=r"trained otherwise \(then -> now\):\n  data.num_train_images: "):
        classify(root, tmp_path / "out", steps=3)


def test_refuses_a_class_token_that_is_not_there_before_anything_is_written(tmp_path):
    root = write_classes(tmp_path / "data", num_classes=2)
    with pytest.raises(ValueError, match="vector is class_token, but this model has no class token"):
        classify(root, tmp_path / "out", vectors=("class_token",))
    assert not (tmp_path / "out").exists()
