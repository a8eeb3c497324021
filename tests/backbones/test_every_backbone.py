"""One test body for every family: forward, masks, a pretraining step, frozen tasks, export, pictures."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from selfpatch.backbones.backbone import Backbone, Tokens
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.config import AggregatorConfig, EfficiencyConfig
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task
from selfpatch.export import export_timm
from selfpatch.pretraining.student_teacher import apply_efficiency, build_student_teacher
from selfpatch.pretraining.views import Views
from selfpatch.visualization.pictures import visualize
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import small_vit
from tests.evaluation.boxed_scenes import write_voc
from tests.evaluation.labeled_scenes import write_ade20k
from tests.small_models import tiny_config

BACKBONES = {
    "class token": partial(small_vit, "class token"),
    "no class token": partial(small_vit, "no class token"),
    "registers": partial(small_vit, "registers"),
    "RoPE": partial(small_vit, "RoPE"),
    "RoPE and registers": partial(small_vit, "RoPE and registers"),
    "parallel blocks": partial(small_vit, "parallel blocks"),
    "post-norm": partial(small_vit, "post-norm"),
    "DINO positions": partial(small_vit, "class token", pos_embed_interpolation="offset"),
    "Swin": small_swin,
}
every_backbone = pytest.mark.parametrize("name", BACKBONES)
GRIDS = [(3, 5), (6, 4)]


def random_images(backbone: Backbone, grid_size: tuple[int, int], *, count: int = 2, seed: int = 1) -> Tensor:
    sides = [places * side for places, side in zip(grid_size, backbone.patch_size, strict=True)]
    return torch.randn(count, 3, *sides, generator=torch.Generator().manual_seed(seed))


def random_masks(grid_size: tuple[int, int], *, count: int = 2) -> Tensor:
    masks = torch.rand(count, grid_size[0] * grid_size[1], generator=torch.Generator().manual_seed(2)) < 0.4
    assert masks.any() and not masks.all()
    return masks


def assert_equal(ours: Tokens, expected: Tokens) -> None:
    assert ours.grid_size == expected.grid_size
    assert torch.equal(ours.patch_tokens, expected.patch_tokens)
    assert (ours.cls_token is None) == (expected.cls_token is None)
    if ours.cls_token is not None:
        assert torch.equal(ours.cls_token, expected.cls_token)


@every_backbone
@pytest.mark.parametrize("grid_size", GRIDS)
@torch.no_grad()
def test_forward(name, grid_size):
    backbone = BACKBONES[name]()
    images = random_images(backbone, grid_size)
    tokens = backbone(images)
    assert tokens.grid_size == backbone.grid_size((images.shape[2], images.shape[3])) == grid_size
    assert tokens.patch_tokens.shape == (2, grid_size[0] * grid_size[1], backbone.embed_dim)
    assert (tokens.cls_token is not None) == backbone.has_cls_token
    last, first = backbone.forward_intermediates(images, [-1, 0])
    normed = backbone.final_norm(last.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(normed, tokens.patch_tokens, rtol=1e-5, atol=1e-5)
    width, (rows, columns) = backbone.stages[0]
    assert first.shape == (2, width, images.shape[2] // rows, images.shape[3] // columns)
    assert backbone.last_attention_keys(images).shape[2:] == grid_size
    assert backbone.num_channels == 3
    # An image's tokens do not depend on the batch.
    torch.testing.assert_close(backbone(images[1:]).patch_tokens, tokens.patch_tokens[1:], rtol=1e-4, atol=1e-5)


# Masks


@every_backbone
@torch.no_grad()
def test_masks_replace_patch_embeddings_before_positions(name):
    backbone = BACKBONES[name]()
    grid_size = GRIDS[0]
    images, masks = random_images(backbone, grid_size), random_masks(grid_size)
    plain = backbone(images)
    assert backbone.mask_token is None and "mask_token" not in backbone.state_dict()
    with pytest.raises(ValueError, match=r"no mask token; call enable_masks\(\)"):
        backbone(images, masks)
    backbone.enable_masks()
    assert not backbone.mask_token.any()
    assert_equal(backbone(images, torch.zeros_like(masks)), plain)
    assert_equal(backbone(images), plain)

    # What goes into the first block is what it would be, had the patch embedding itself given the mask token.
    torch.nn.init.normal_(backbone.mask_token)
    entering, expected = [], []
    capture = backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].clone()))
    masked = backbone(images, masks)
    backbone(images)

    def replace_by_hand(module, inputs, output):
        output = output.clone()
        rows, columns = output.shape[1] // grid_size[0], output.shape[2] // grid_size[1]
        for b, n in masks.nonzero().tolist():
            r, s = divmod(n, grid_size[1])
            output[b, r * rows : (r + 1) * rows, s * columns : (s + 1) * columns] = backbone.mask_token
        return output

    hook = backbone.model.patch_embed.register_forward_hook(replace_by_hand)
    by_hand = backbone(images)
    hook.remove()
    capture.remove()
    expected = entering[2]
    torch.testing.assert_close(entering[0], expected, rtol=0, atol=0)
    assert_equal(masked, by_hand)

    # Embeddings of other patches are what they are without masks; those of masked patches differ.
    if entering[0].ndim == 3:
        first = entering[0].shape[1] - masks.shape[1]
        without, with_masks = (x[:, first:] for x in (entering[1], entering[0]))
        assert torch.equal(without[~masks], with_masks[~masks])
        assert (without[masks] != with_masks[masks]).any(dim=-1).all()
    assert not masked.patch_tokens.equal(plain.patch_tokens)
    assert not any(module._forward_hooks for module in backbone.modules())


# Pretraining


def pretraining_step(
    name: str, checkpointing: str = "none", compile_backend: Callable | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of DINO + SelfPatch on global and local crops of two sizes, some patches masked."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    backbone.set_drop_path(0.3)
    backbone.enable_masks()
    config = tiny_config(aggregator=AggregatorConfig())
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=4).train()
    apply_efficiency(student_teacher, EfficiencyConfig(activation_checkpointing=checkpointing))
    student = student_teacher.student.backbone
    if compile_backend is not None:
        student.compile_blocks(compile_backend)
    crops = [random_images(backbone, grid, count=4, seed=seed) for grid, seed in (((4, 4), 3), ((3, 3), 4))]
    views = Views(*(crop.unflatten(0, (2, 2)) for crop in crops), random_masks((4, 4), count=4).unflatten(0, (2, 2)))
    loss, _ = student_teacher(views, 0)
    loss.backward()
    assert not any(parameter.grad is not None for parameter in student_teacher.teacher.parameters())
    return loss.item(), {key: p.grad for key, p in student.named_parameters() if p.grad is not None}


@every_backbone
def test_a_pretraining_step(name):
    loss, gradients = pretraining_step(name)
    assert np.isfinite(loss)
    assert gradients["mask_token"].any()
    trained = {key for key, _ in BACKBONES[name]().named_parameters()}
    missing = trained - gradients.keys()
    assert all("norm" in key for key in missing), missing
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["model.patch_embed.proj.weight"].any()


@every_backbone
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing_leaves_gradients_as_they_are(name, checkpointing):
    loss, gradients = pretraining_step(name)
    again, checkpointed = pretraining_step(name, checkpointing)
    assert again == loss and checkpointed.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
# torch.compile looks at what it should not, and says so itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["registers", "RoPE and registers", "Swin"])
def test_compiling_leaves_gradients_as_they_are(name):
    """Every block by itself, at both sizes of crops; the compiler that only traces stands for the one of GPUs."""
    loss, gradients = pretraining_step(name)
    again, compiled = pretraining_step(name, compile_backend=aot_eager)
    assert again == pytest.approx(loss, rel=1e-5) and compiled.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(compiled[key], gradient, rtol=1e-3, atol=1e-5, msg=key)


# Frozen tasks, export, pictures


@every_backbone
def test_frozen_tasks(name, tmp_path):
    backbone = BACKBONES[name]()
    before = copy.deepcopy(backbone.state_dict())
    scenes = write_ade20k(tmp_path / "scenes", num_train=2, num_val=1, size=(72, 104))
    protocol = InContextSegmentation(image_size=64, resize="keep_aspect", memory_size=60, num_neighbors=5)
    result = run_task("in-context-segmentation", backbone, scenes, protocol, EvalContext(tmp_path / "in-context"))
    assert 0 < result.metrics["aAcc"] <= 1
    assert result.details["model"]["architecture"] == backbone.architecture.name
    boxes = write_voc(tmp_path / "boxes", count=2, size=(72, 136))
    result = run_task("object-discovery", backbone, boxes, ObjectDiscovery(), EvalContext(tmp_path / "lost"))
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@every_backbone
@torch.no_grad()
def test_export_to_plain_timm(name, tmp_path):
    backbone = BACKBONES[name]()
    backbone.mean, backbone.std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    backbone.enable_masks()  # which no file holds
    line = export_timm(backbone, tmp_path / "backbone.safetensors")
    model = eval(line, {"timm": timm}).eval()
    loaded = load_backbone(tmp_path / "backbone.safetensors")
    assert (loaded.mean, loaded.std, loaded.patch_size) == (backbone.mean, backbone.std, backbone.patch_size)
    images = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(1))
    ours, theirs = backbone(images), model.forward_features(images)
    if theirs.ndim == 4:
        theirs = theirs.flatten(1, 2)
    torch.testing.assert_close(theirs[:, -ours.patch_tokens.shape[1] :], ours.patch_tokens, rtol=1e-4, atol=1e-5)
    if ours.cls_token is not None:
        torch.testing.assert_close(theirs[:, 0], ours.cls_token, rtol=1e-4, atol=1e-5)
    if name != "DINO positions":  # which a file does not keep
        for grid_size in GRIDS:
            x = random_images(backbone, grid_size)
            torch.testing.assert_close(loaded(x).patch_tokens, backbone(x).patch_tokens, rtol=1e-4, atol=1e-5)


@every_backbone
def test_pictures(name, tmp_path):
    backbone = BACKBONES[name]()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    paths = visualize(backbone, [("a.png", pixels)], tmp_path)
    pictures = ["pca", "similarity", "positives"] + (["attention"] if backbone.has_cls_token else [])
    assert [path.stem for path in paths] == pictures
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 256
