import dataclasses
import json
import os
import re
import signal

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import nn

from selfpatch import cli
from selfpatch.backbones.build import build_backbone
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.evaluation.datasets.coco import CocoDetection
from selfpatch.evaluation.detection import mask_rcnn
from selfpatch.evaluation.detection.detector import Detector
from selfpatch.evaluation.detection.mask_rcnn import (
    build_detector,
    layer_depths,
    learning_rate,
    num_steps,
    parameter_groups,
    run,
)
from selfpatch.evaluation.head_training import StoppedError
from selfpatch.evaluation.protocols import protocol_name
from selfpatch.evaluation.protocols.mask_rcnn import PRESETS, MaskRCNN
from selfpatch.evaluation.task import EvalContext
from tests.backbones.small_swin import small_pyramid
from tests.backbones.small_vits import small_vit
from tests.evaluation.coco_scenes import write_coco
from tests.evaluation.detection.test_detector import SMALL

TINY = {
    **SMALL,
    "epochs": 2,
    "batch_size": 2,
    "warmup_steps": 1,
    "decay_epochs": (1.5,),
    "lr": 1e-3,
    "image_size": 48,
    "long_side": 64,
    "short_sides": (48, 64),
    "crop_short_sides": (48,),
    "crop_sides": (32, 48),
    "score_threshold": 0.0,
    "max_boxes": 5,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "data")


@pytest.mark.parametrize("neck", ["xcit", "simple"])
def test_parameters_of_the_papers_detector(neck):
    """ViT-S/16 and 80 classes; the final norm is not part of it."""
    backbone = build_backbone(
        BackboneConfig(name="vit_small_patch16_224"), (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    detector = build_detector(backbone, 80, MaskRCNN(neck=neck))
    assert detector.out_indices == ([11] if neck == "simple" else [3, 5, 7, 11])
    total = sum(parameter.numel() for parameter in detector.parameters())
    assert total == {"xcit": 43_739_125, "simple": 42_511_317}[neck]


@pytest.mark.parametrize("name", ["class token", "registers", "Swin"])
def test_a_run_writes_detections_pictures_and_what_it_met(name, root, tmp_path):
    backbone = small_pyramid() if name == "Swin" else small_vit(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    reports = []
    protocol = MaskRCNN(neck="simple" if name == "registers" else "xcit", **TINY)
    outcome = run(backbone, root, protocol, EvalContext(tmp_path, report=lambda *report: reports.append(report)))
    # The backbone that was handed in is as it was, its final norm included.
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not isinstance(backbone.model.norm, nn.Identity)
    assert reports == [(i, 4) for i in range(1, 5)]
    assert {"box/AP", "box/AP50", "box/AP75", "mask/AP", "mask/AP50", "mask/AP75"} <= outcome.metrics.keys()
    assert all(0 <= value <= 1 for value in outcome.metrics.values()) and next(iter(outcome.metrics)) == "box/AP"
    assert (outcome.details["steps"], outcome.dataset_info["num_val_images"], outcome.dataset_info["num_classes"]) == (
        4,
        4,
        3,
    )
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {entry["image_id"] for entry in results} <= {5, 15, 25, 35} and len(results) > 0
    assert {entry["category_id"] for entry in results} <= {3, 7, 44}
    loaded = COCO(root / "annotations/instances_val2017.json").loadRes(results)  # as the official program reads it
    assert loaded.annToMask(loaded.dataset["annotations"][0]).shape == (48, 64)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["class_box_ap.png", "class_mask_ap.png", "detections_1.png"]
    with Image.open(tmp_path / "pictures/detections_1.png") as sheet:
        assert sheet.size[0] > 1000


def test_a_fine_tune_killed_half_way_goes_on(root, tmp_path, monkeypatch):
    """Stopped by a signal after two of four steps, then the same command: the same weights as of an unbroken run."""
    protocol = MaskRCNN(**TINY | {"drop_path": 0.3})
    final = {}

    def keep(name):
        detect = mask_rcnn.detect_images

        def detect_images(detector, *rest):
            final[name] = {key: value.clone() for key, value in detector.state_dict().items()}
            return detect(detector, *rest)

        return detect_images

    with monkeypatch.context() as patch:
        patch.setattr(mask_rcnn, "detect_images", keep("unbroken"))
        unbroken = run(small_vit("class token"), root, protocol, EvalContext(tmp_path / "unbroken"))

    read, reads = mask_rcnn.augment, []

    def stop_in_between(*arguments):
        reads.append(arguments)
        if len(reads) == 6:  # of the third step, read ahead while the second one is computed
            os.kill(os.getpid(), signal.SIGTERM)
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mask_rcnn, "augment", stop_in_between)
        with pytest.raises(StoppedError, match="steps, saved; the same command goes on from there"):
            run(small_vit("class token"), root, protocol, EvalContext(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "detections.json").exists()
    monkeypatch.setattr(mask_rcnn, "detect_images", keep("broken"))
    resumed = run(small_vit("class token"), root, protocol, EvalContext(tmp_path / "broken"))
    assert final["broken"].keys() == final["unbroken"].keys()
    assert all(torch.equal(value, final["unbroken"][key]) for key, value in final["broken"].items())
    assert resumed.metrics == unbroken.metrics

    # Settings of the test may change without training anew; those of the training may not.
    again = run(
        small_vit("class token"), root, dataclasses.replace(protocol, max_boxes=3), EvalContext(tmp_path / "broken")
    )
    assert (again.dataset_info, again.details) == (resumed.dataset_info, resumed.details)
    with pytest.raises(ValueError, match=r"holds a head that was trained otherwise[\s\S]*protocol.lr: 0.001 -> 0.002"):
        run(small_vit("class token"), root, dataclasses.replace(protocol, lr=2e-3), EvalContext(tmp_path / "broken"))


def test_a_fine_tune_goes_on_over_other_validation_images_but_not_over_other_annotations(tmp_path):
    root = write_coco(tmp_path / "data")

    def identity():
        return mask_rcnn.identity(CocoDetection(root), MaskRCNN())

    before = identity()
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    assert not any(entry["image_id"] == content["images"][-1]["id"] for entry in content["annotations"])
    file.write_text(json.dumps(content | {"images": content["images"][:-1]}))
    assert identity() == before
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    assert identity() != before


def test_recomputing_gives_the_same_gradients(root):
    data = CocoDetection(root)
    samples = [mask_rcnn.read_sample(item) for item in data.train[:2]]
    gradients = []
    for recompute in (False, True):
        backbone = small_vit("class token")
        detector = build_detector(backbone, 3, MaskRCNN(**TINY | {"recompute": recompute})).train()
        assert detector.backbone.model.grad_checkpointing == recompute
        batch = mask_rcnn.collate(
            [s.image for s in samples], backbone.mean, backbone.std, size_divisor=32, device=torch.device("cpu")
        )
        torch.manual_seed(0)
        targets = [mask_rcnn.to_targets(sample, torch.device("cpu")) for sample in samples]
        sum(detector.losses(batch, [s.size for s in samples], targets).values()).backward()
        gradients.append([parameter.grad for parameter in detector.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def names_without_decay(detector, protocol=None):
    protocol = protocol or MaskRCNN()
    groups = parameter_groups(detector, protocol)
    assert {group["weight_decay"] for group in groups} == {0.0, protocol.weight_decay}
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(name for name, p in detector.named_parameters() if p.requires_grad)
    return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}


def test_weight_decay_spares_norms_positions_and_tokens_of_the_backbone_alone():
    """mmdetection's rule for XCiT goes by names: its neck's batch norm, fpn1.1, has no "norm" in it and decays."""
    detector = build_detector(small_vit("registers"), 3, MaskRCNN(**SMALL))
    tokens = {f"backbone.model.{name}" for name in ("pos_embed", "cls_token", "reg_token")}
    norms = {f"backbone.model.blocks.{i}.norm{k}.{what}" for i in (0, 1) for k in (1, 2) for what in ("weight", "bias")}
    assert names_without_decay(detector) == tokens | norms
    assert isinstance(detector.pyramid.resized.levels[0][1], nn.BatchNorm2d)
    without = names_without_decay(build_detector(small_pyramid(), 3, MaskRCNN(**SMALL)))
    assert all("norm" in name or "relative_position_bias_table" in name for name in without)
    assert any("downsample.norm" in name for name in without) and any("relative_position" in name for name in without)


def test_weight_decay_of_vitdet_spares_no_norm_of_neck_and_heads():
    """detectron2 spares torch's own norms; the one of its pyramid and heads is a class of its own, and decays."""
    settings = dataclasses.replace(PRESETS["vitdet"], **SMALL)
    without = names_without_decay(build_detector(small_vit("no class token"), 3, settings), settings)
    assert all(name.startswith("backbone.") for name in without)
    assert {name.split(".")[-2] for name in without} == {"model", "norm1", "norm2"}


def test_layer_decay_is_by_depth():
    detector = build_detector(small_vit("class token"), 3, MaskRCNN(neck="simple", **SMALL))
    depth = layer_depths(detector)
    assert depth["backbone.model.patch_embed.proj.weight"] == depth["backbone.model.cls_token"] == 0
    assert depth["backbone.model.blocks.0.norm1.weight"] == 1 and depth["backbone.model.blocks.1.mlp.fc2.bias"] == 2
    assert depth["pyramid.levels.0.1.weight"] == depth["rpn.head.cls_logits.layer.bias"] == 3
    scales = {group["lr_scale"] for group in parameter_groups(detector, PRESETS["vitdet"])}
    assert sorted(scales) == pytest.approx([0.7**3, 0.7**2, 0.7, 1])
    of_swin = layer_depths(build_detector(small_pyramid(), 3, MaskRCNN(**SMALL)))
    assert [of_swin[f"backbone.model.layers.{i}.blocks.0.norm1.weight"] for i in range(4)] == [1, 2, 3, 4]


def test_learning_rate_rises_and_falls_in_stairs(root):
    data = CocoDetection(root)
    data.train = data.train * 4000  # 16,000 images, 1000 steps an epoch
    protocol = PRESETS["paper-1x-batch-16"]
    lr = learning_rate(data, protocol)
    assert num_steps(data, protocol) == 12_000
    assert lr(0) == pytest.approx(5e-8) and lr(500) == pytest.approx(5e-5 * (0.001 + 0.999 / 2))
    assert [lr(step) for step in (1000, 7999, 8000, 10_999, 11_000, 11_999)] == pytest.approx(
        [5e-5, 5e-5, 5e-6, 5e-6, 5e-7, 5e-7]
    )


def test_presets_are_the_published_ones():
    paper, vitdet = PRESETS["paper-1x"], PRESETS["vitdet"]
    assert (paper.out_indices, paper.neck, paper.drop_path, paper.upstream_heads) == ((3, 5, 7, 11), "xcit", 0.05, None)
    assert (paper.lr, paper.weight_decay, paper.batch_size, paper.epochs) == (5e-5, 0.05, 8, 12)
    # The number of GPUs is written nowhere: 8 images a step follow from one per GPU at XCiT's halved rate, 16 have a name.
    assert PRESETS["paper-1x-batch-16"] == dataclasses.replace(paper, batch_size=16)
    assert protocol_name("mask-rcnn", MaskRCNN(batch_size=16)) == "paper-1x-batch-16"
    assert (paper.image_size, paper.long_side, paper.score_threshold, paper.nms, paper.max_boxes) == (
        800,
        1333,
        0.05,
        0.5,
        100,
    )
    assert (paper.rpn_post_nms_top_n_train, paper.rpn_post_nms_top_n_test) == (1000, 1000)
    assert (vitdet.neck, vitdet.head_norm, vitdet.epochs, vitdet.batch_size, vitdet.lr) == (
        "simple",
        "layer_norm",
        100,
        64,
        1e-4,
    )
    assert [round(epoch * 118_000 / 64 / 1000) for epoch in vitdet.decay_epochs] == [164, 178]
    # detectron2's padding_constraints (square_size) and its mapper's recompute_boxes; neither in mmdetection's program.
    assert (vitdet.square_pad, vitdet.recompute_boxes) == (1024, True)
    assert (paper.square_pad, paper.recompute_boxes) == (None, False)


@pytest.mark.parametrize("square_pad", [None, 90])
def test_images_are_padded_alike_in_training_and_test(square_pad, root, tmp_path, monkeypatch):
    """Padded to multiples of 32: as large as the largest of the batch, or all of them to one square of 96."""
    shapes = {True: set(), False: set()}
    features = Detector.features

    def watched(detector, images):
        shapes[detector.training].add(tuple(images.shape[2:]))
        return features(detector, images)

    monkeypatch.setattr(Detector, "features", watched)
    settings = TINY | {"augmentation": "large_scale_jitter", "jitter": (0.4, 1.4), "long_side": 80, "image_size": 64}
    protocol = MaskRCNN(**settings | {"square_pad": square_pad})
    run(small_vit("class token"), root, protocol, EvalContext(tmp_path))
    if square_pad is None:
        assert (96, 96) not in shapes[True] | shapes[False] and (64, 96) in shapes[False]
    else:
        assert shapes[True] == shapes[False] == {(96, 96)}


def test_upstream_heads_cut_the_same_weights_otherwise():
    backbone = small_vit("class token")  # 3 heads
    images = torch.randn(1, 3, 32, 48)
    own, other = (
        build_detector(backbone, 3, MaskRCNN(upstream_heads=heads, **SMALL)).backbone.eval() for heads in (None, 4)
    )
    assert (own.num_heads, other.num_heads, backbone.num_heads) == (3, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    (map_own,), (map_other,) = own.forward_intermediates(images, [0]), other.forward_intermediates(images, [0])
    assert not torch.allclose(map_own, map_other, atol=1e-3)
    # As a transformer that was made with so many heads.
    made = small_vit("class token", num_heads=4)
    made.load_state_dict(backbone.state_dict())
    assert torch.allclose(map_other, made.forward_intermediates(images, [0])[0], atol=1e-5)
    with pytest.raises(ValueError, match="a width of 24 cannot be cut into 5 attention heads; choose a divisor"):
        build_detector(backbone, 3, MaskRCNN(upstream_heads=5))
    with pytest.raises(ValueError, match="RoPE|are made for its own 3 attention heads"):
        build_detector(small_vit("RoPE and registers"), 3, MaskRCNN(upstream_heads=4))
    with pytest.raises(
        ValueError, match="only a plain vision transformer can be cut into another number of attention heads"
    ):
        build_detector(small_pyramid(), 3, MaskRCNN(upstream_heads=4))


def test_the_start_follows_from_the_seed_alone():
    backbone = small_vit("class token")
    torch.manual_seed(0)
    expected_next = torch.rand(3)
    torch.manual_seed(0)
    one, two, other = (build_detector(backbone, 3, MaskRCNN(seed=seed, **SMALL)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected_next)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["rpn.head.bbox_pred.layer.weight"], other["rpn.head.bbox_pred.layer.weight"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"out_indices": (3, 5, 7, 12)}, r"out-indices is \(3, 5, 7, 12\); each must be in \[0, 11\]"),
        ({"out_indices": (5, 3, 7, 11)}, "out-indices is .* ascending order"),
        ({"upstream_heads": 0}, "upstream-heads is 0; it must be at least 1"),
        ({"short_sides": ()}, r"short-sides is \(\); give at least one"),
        ({"crop_sides": (600, 384)}, r"crop-sides is \(600, 384\); .* ascending order"),
        ({"long_side": 700}, "long-side is 700; it must be at least image-size, .* 800"),
        ({"square_pad": 1024}, "square-pad is 1024; it must be at least long-side, which is 1333"),
        ({"accumulate": 9}, "accumulate is 9; it must be at most batch-size, which is 8"),
        ({"drop_path": 1.0}, r"drop-path is 1.0; it must be a probability in \[0, 1\)"),
        ({"layer_decay": 0.0}, r"layer-decay is 0.0; it must be in \(0, 1\]"),
        ({"nms": 1.5}, r"nms is 1.5; it must be in \[0, 1\]"),
        ({"decay_epochs": (11, 8)}, r"decay-epochs is \(11, 8\); .* ascending order"),
        ({"warmup_steps": -1}, "warmup-steps is -1; it must be at least 0"),
    ],
)
def test_ranges(settings, says):
    with pytest.raises(ValueError, match=says):
        MaskRCNN(**settings)


def test_too_long_a_warm_up_is_refused_before_training(root, tmp_path):
    says = "warmup-steps is 1000, but 12 epochs of 4 images, 8 at once, are 6 steps; lower warmup-steps"
    with pytest.raises(ValueError, match=says):
        run(small_vit("class token"), root, MaskRCNN(), EvalContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "flags", "says"),
    [
        (lambda root: (root / "annotations/instances_val2017.json").unlink(), [], "not found; .*cocodataset.org"),
        (lambda root: next((root / "train2017").glob("000001*")).unlink(), [], "1 of 4 images that .* are not in .*train2017"),
        (lambda root: None, ["--image-size", "-4"], "image-size is -4; it must be at least 1"),
        (lambda root: None, ["--upstream-heads", "5"], "cannot be cut into 5 attention heads"),
        (lambda root: None, ["--warmup-steps", "9999"], "warmup-steps is 9999, but 2 epochs of 4 images"),
    ],
    ids=["no annotations", "no image", "range", "heads", "warm-up"],
)  # fmt: skip
def test_bad_input_on_the_command_line(spoil, flags, says, tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    spoil(data)
    out = tmp_path / "out"
    command = ["evaluate", "timm:vit_tiny_patch16_224", "--task", "mask-rcnn", "--preset", "quick"]
    code = cli.main([*command, "--data", str(data), "--out", str(out), "--device", "cpu", *flags])
    said = capsys.readouterr().err
    assert code == 2 and len(said.strip().splitlines()) == 1 and "Traceback" not in said
    assert re.search(says, said), said
    assert not out.exists()
