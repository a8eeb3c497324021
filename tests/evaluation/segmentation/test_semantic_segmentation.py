import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from selfpatch.backbones.backbone import Architecture
from selfpatch.backbones.build import build_backbone, create_timm
from selfpatch.backbones.swin import ANY_SIZE, Swin
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.evaluation.head_training import StoppedError
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols.semantic_fpn import SemanticFPN
from selfpatch.evaluation.protocols.upernet import UPerNet
from selfpatch.evaluation.segmentation import semantic_segmentation
from selfpatch.evaluation.segmentation.semantic_segmentation import (
    Segmenter,
    parameter_groups,
    pixel_loss,
    run_semantic_fpn,
    run_upernet,
    semantic_fpn,
    upernet,
)
from selfpatch.evaluation.task import EvalContext
from tests.backbones.small_vits import small_vit
from tests.evaluation.labeled_scenes import write_ade20k

TINY = {
    "image_size": 32, "long_side": 128, "stride": 20, "steps": 40, "batch_size": 4, "lr": 2e-3, "warmup_steps": 4,
    "head_channels": 16, "dropout": 0.0, "drop_path": 0.0,
}  # fmt: skip


def tiny_fpn(**settings) -> SemanticFPN:
    return SemanticFPN(fpn_channels=16, **{**TINY, **settings})


def tiny_upernet(**settings) -> UPerNet:
    return UPerNet(auxiliary_channels=8, pool_scales=(1, 2), **{**TINY, **settings})


TASKS = {"semantic-fpn": (run_semantic_fpn, semantic_fpn, tiny_fpn), "upernet": (run_upernet, upernet, tiny_upernet)}
each_task = pytest.mark.parametrize("task", TASKS)


def tiny_vit(**settings):
    torch.manual_seed(0)
    config = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, **settings}
    return build_backbone(
        BackboneConfig(name="vit_tiny_patch16_224", **config), (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def tiny_swin() -> Swin:
    arguments = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "num_classes": 0}
    torch.manual_seed(0)
    model = create_timm("swin_tiny_patch4_window7_224", **arguments, **ANY_SIZE)
    return Swin(model, Architecture("swin_tiny_patch4_window7_224", arguments))


BACKBONES = {
    "plain": tiny_vit,
    "class token": lambda: tiny_vit(class_token=True),
    "no final norm": lambda: tiny_vit(final_norm=False),
    "registers": lambda: small_vit("registers"),
    "RoPE and registers": lambda: small_vit("RoPE and registers"),
    "Swin": tiny_swin,
}


# 1. The whole.


@each_task
def test_it_learns_what_colours_say(tmp_path, task):
    run, _, tiny = TASKS[task]
    root = write_ade20k(tmp_path / "data", num_train=24, size=(32, 48), cell=(16, 16))
    protocol = tiny(steps=60, lr=3e-3, photometric_distortion=False, scale=(1.0, 1.0))
    outcome = run(tiny_vit(), root, protocol, EvalContext(tmp_path / "out"))
    assert outcome.metrics["mIoU"] > 0.8 and outcome.metrics["aAcc"] > 0.9
    assert outcome.dataset_info["num_train_images"] == 24 and outcome.details["out_indices"] == [0, 0, 1, 1]
    assert {path.name for path in (tmp_path / "out/pictures").iterdir()} == {"predictions_1.png", "class_iou.png"}


@each_task
@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_at_sizes_that_are_not_square(tmp_path, task, backbone):
    run, _, tiny = TASKS[task]
    root = write_ade20k(tmp_path / "data", num_train=2, num_val=2, size=(45, 71))
    model = BACKBONES[backbone]()
    side = 2 * max(model.patch_size)
    protocol = tiny(
        steps=1, warmup_steps=0, batch_size=2, image_size=side, long_side=4 * side, stride=side, drop_path=0.2
    )
    for inference in ("whole", "slide"):
        outcome = run(model, root, replace(protocol, inference=inference), EvalContext(tmp_path / "out"))
        assert 0 <= outcome.metrics["mIoU"] <= 1
    # Every patch of a training crop has a position of its own.
    positions = final_weights(tmp_path / "out", 1).get("backbone.model.pos_embed")
    assert positions is None or positions.shape[1] in (2 * 2, 1 + 2 * 2)


@each_task
def test_the_backbone_stays_as_it_was(tmp_path, task):
    run, _, tiny = TASKS[task]
    root = write_ade20k(tmp_path / "data")
    backbone = tiny_vit(drop_path=0.1).eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modules = [repr(module) for module in backbone.modules()]
    torch.manual_seed(3)
    expected_next = torch.rand(2)
    torch.manual_seed(3)
    run(backbone, root, tiny(steps=2, warmup_steps=0, drop_path=0.5), EvalContext(tmp_path / "out"))
    assert torch.equal(torch.rand(2), expected_next)  # nor did the global random numbers move
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert [repr(module) for module in backbone.modules()] == modules
    assert not any(module.training for module in backbone.modules())
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())


# 2. A training that is killed goes on.


def final_weights(out, steps: int):
    return load_file(out / f"checkpoints/step-{steps:08d}/model.safetensors")


@each_task
def test_stopped_half_way_and_gone_on_equals_unbroken(tmp_path, task, monkeypatch):
    run, _, tiny = TASKS[task]
    root = write_ade20k(tmp_path / "data")
    protocol = tiny(steps=5, warmup_steps=1, dropout=0.3, drop_path=0.3)
    unbroken = run(tiny_vit(), root, protocol, EvalContext(tmp_path / "unbroken"))

    calls = []

    def collate_and_be_killed(*arguments, **keywords):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return collate(*arguments, **keywords)

    collate = semantic_segmentation.collate
    with monkeypatch.context() as patch:
        patch.setattr(semantic_segmentation, "collate", collate_and_be_killed)
        with pytest.raises(StoppedError, match="stopped after 3 of 5 steps"):
            run(tiny_vit(), root, protocol, EvalContext(tmp_path / "killed"))
        assert len(calls) == 3
        gone_on = run(tiny_vit(), root, protocol, EvalContext(tmp_path / "killed"))
        assert len(calls) == 5
    expected, weights = final_weights(tmp_path / "unbroken", 5), final_weights(tmp_path / "killed", 5)
    assert expected.keys() == weights.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    assert gone_on.metrics == unbroken.metrics


def test_what_changes_the_weights_is_refused_and_what_does_not_is_not(tmp_path, monkeypatch):
    root = write_ade20k(tmp_path / "data")
    out = EvalContext(tmp_path / "out")
    protocol = tiny_fpn(steps=2, warmup_steps=0)
    run_semantic_fpn(tiny_vit(), root, protocol, out)
    for backbone, other in (
        (tiny_vit(), replace(protocol, lr=1e-4)),
        (tiny_vit(embed_dim=16), protocol),
        (tiny_vit(), replace(protocol, seed=1)),
    ):
        with pytest.raises(ValueError, match="trained otherwise"):
            run_semantic_fpn(backbone, root, other, out)
    # Scored in another way, nothing is trained again.
    monkeypatch.setattr(semantic_segmentation, "pixel_loss", None)
    for kind in ("images", "annotations"):
        (root / kind / "validation/validation_0.png").unlink()
    run_semantic_fpn(tiny_vit(), root, replace(protocol, inference="slide", recompute=True), out)


# 3. Its parts.


@each_task
@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_that_is_trained_has_a_gradient_and_the_rest_is_frozen(task, backbone):
    _, build, tiny = TASKS[task]
    segmenter = build(BACKBONES[backbone]().requires_grad_(False), 3, tiny())
    rows, columns = segmenter.backbone.patch_size
    scores, auxiliary = segmenter(torch.randn(2, 3, 2 * rows, 3 * columns))
    (scores.square().sum() + (0 if auxiliary is None else auxiliary.square().sum())).backward()
    for name, parameter in segmenter.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    frozen = {name for name, parameter in segmenter.named_parameters() if not parameter.requires_grad}
    assert frozen <= {"backbone.model.norm.weight", "backbone.model.norm.bias"}
    assert bool(frozen) == (backbone != "no final norm")


def test_a_pyramid_goes_into_upernet_as_it_is():
    assert isinstance(upernet(tiny_swin(), 3, tiny_upernet()).neck, nn.Identity)
    assert not isinstance(upernet(tiny_vit(), 3, tiny_upernet()).neck, nn.Identity)


def names_by_decay(segmenter):
    decay, no_decay = parameter_groups(segmenter, 0.01)
    assert decay["weight_decay"] == 0.01 and no_decay["weight_decay"] == 0
    name_of = {id(parameter): name for name, parameter in segmenter.named_parameters()}
    return [{name_of[id(parameter)] for parameter in group["params"]} for group in (decay, no_decay)]


def test_weight_decay_spares_positions_and_tokens_of_a_vit():
    """As mmsegmentation's constructor finds it for ViT-S/16 with Semantic FPN: of 186 tensors only pos_embed is spared.

    Its norms are called ln1, ln2 and bn, which "norm" is no part of. Ours has a class token besides.
    """
    config = BackboneConfig(name="vit_small_patch16_224")
    backbone = build_backbone(config, (224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    decay, no_decay = names_by_decay(semantic_fpn(backbone, 150, SemanticFPN()))
    assert no_decay == {"backbone.model.pos_embed", "backbone.model.cls_token"} and len(decay) == 185
    norms = {"backbone.model.blocks.0.norm1.weight", "backbone.model.blocks.11.norm2.bias"}
    assert norms | {"backbone.model.blocks.0.attn.qkv.bias", "head.scale_heads.0.0.bn.weight"} <= decay
    _, no_decay = names_by_decay(upernet(small_vit("registers"), 3, tiny_upernet()))
    assert no_decay == {f"backbone.model.{name}" for name in ("pos_embed", "cls_token", "reg_token")}


def test_weight_decay_spares_the_norms_of_a_swin():
    """In mmsegmentation's Swin they are called norm1, norm2, patch_embed.norm and downsample.norm."""
    segmenter = upernet(tiny_swin(), 3, tiny_upernet())
    decay, no_decay = names_by_decay(segmenter)
    assert any("downsample.norm" in name for name in no_decay) and any("norm1" in name for name in no_decay)
    assert all("norm" in name or "relative_position_bias_table" in name for name in no_decay)
    assert not any(name.startswith("backbone") and "norm" in name for name in decay)
    assert {name for name, p in segmenter.named_parameters() if p.requires_grad} == decay | no_decay


def test_the_loss_is_a_mean_over_all_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 3)
    masks = torch.randint(0, 3, (2, 4, 6))
    masks[0, :2] = IGNORED
    upsampled = F.interpolate(logits, size=(4, 6), mode="bilinear").double().log_softmax(dim=1)
    total = sum(
        -upsampled[b, masks[b, r, s], r, s].item()
        for b in range(2) for r in range(4) for s in range(6) if masks[b, r, s] != IGNORED
    )  # fmt: skip
    assert pixel_loss(logits, masks).item() == pytest.approx(total / (2 * 4 * 6), rel=1e-6)
    assert pixel_loss(logits, torch.full_like(masks, IGNORED)).item() == 0


def test_images_are_filled_up_to_whole_patches_and_scores_stretched_over_them():
    segmenter = semantic_fpn(tiny_vit(), 3, tiny_fpn()).eval()
    image = torch.randn(1, 3, 20, 33)
    filled = torch.zeros(1, 3, 24, 40)
    filled[:, :, :20, :33] = image
    with torch.no_grad():
        expected = F.interpolate(segmenter(filled)[0], size=(20, 33), mode="bilinear")
        assert torch.equal(segmenter.predict(image), expected)
        assert segmenter(filled)[0].shape == (1, 3, 3, 5)
        whole = segmenter.predict(filled)
        assert torch.equal(whole, F.interpolate(segmenter(filled)[0], size=(24, 40), mode="bilinear"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recomputing_changes_nothing(backbone):
    gradients = []
    for recompute in (False, True):
        model = BACKBONES[backbone]()
        torch.manual_seed(1)
        segmenter = semantic_fpn(model, 3, tiny_fpn()).train()
        segmenter.backbone.set_activation_checkpointing("full" if recompute else "none")
        segmenter.backbone.set_drop_path(0.5)
        rows, columns = model.patch_size
        torch.manual_seed(2)
        segmenter(torch.randn(2, 3, 2 * rows, 2 * columns))[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in segmenter.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_auxiliary_head_learns_by_its_weight():
    weighted = upernet(tiny_vit(), 3, tiny_upernet(auxiliary_weight=0.4, auxiliary_level=2))
    assert isinstance(weighted, Segmenter) and weighted.auxiliary is not None and weighted.auxiliary_level == 2
    assert weighted(torch.randn(2, 3, 32, 48))[1].shape == (2, 3, 4, 6)
    without = upernet(tiny_vit(), 3, tiny_upernet(auxiliary_weight=0.0))
    assert without.auxiliary is None and without(torch.randn(2, 3, 32, 48))[1] is None
