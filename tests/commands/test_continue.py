"""Public weights of every origin are continued: student and teacher hold all tensors, and the network is the same."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.pretrain import pretrain
from selfpatch.config.io import read_yaml
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from selfpatch.recipes.continue_from import CONTINUE_RECIPES
from tests.backbones.checkpoints.layouts import encoder, prefixed, save, with_fixed_positions, without, zeros
from tests.backbones.checkpoints.test_dinov3 import huggingface_names, meta, timm_names
from tests.backbones.checkpoints.test_huggingface import MODELS as HUGGING_FACE
from tests.backbones.checkpoints.test_huggingface import write as write_huggingface
from tests.backbones.small_vits import small_vit
from tests.reference.plain_clip import clip_tensors
from tests.refusals import Refused

# Two steps per epoch; the backbone rests in the first of ten, which is the last one.
SETTINGS = {
    "optim.batch_size": 2, "optim.steps": 10, "run.stop_at_step": 1, "run.device": "cpu", "efficiency.num_workers": 0,
    "objectives.dino.head.hidden_dim": 16, "objectives.dino.head.bottleneck_dim": 8, "crops.num_local": 1,
}  # fmt: skip

LS = ("ls1.gamma", "ls2.gamma")
PLAIN, IBOT, FIXED = encoder(), encoder(layer_scale=("gamma_1", "gamma_2")), encoder(width=384, depth=1)
OPENAI = {"context_length": torch.tensor(7), "vocab_size": torch.tensor(5), "input_resolution": torch.tensor(24)}


def both(tensors: dict) -> dict:
    return {"student": prefixed("module.backbone.", zeros(tensors)), "teacher": prefixed("backbone.", tensors)}


def exported(folder: Path, family: str) -> Path:
    export_timm(small_vit(family), folder / "backbone.safetensors")
    return folder / "backbone.safetensors"


def huggingface(folder: Path, name: str) -> Path:
    make, config, _ = HUGGING_FACE[name]
    return write_huggingface(folder / "hf", make(), config).parent


def swin(folder: Path) -> Path:
    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "img_size": [64, 64], "window_size": 4}
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "swin_tiny_patch4_window7_224", "model_args": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


ORIGINS: dict[str, tuple[Callable[[Path], Path], int | None]] = {  # writes a file; attention heads, if it leaves them open
    "exported": (lambda folder: exported(folder, "class token"), 3),
    "exported, RoPE": (lambda folder: exported(folder, "mixed RoPE"), 3),
    "Hugging Face, ViT": (lambda folder: huggingface(folder, "ViTModel"), None),
    "Hugging Face, DINOv2 with registers": (lambda folder: huggingface(folder, "Dinov2WithRegistersModel"), None),
    "Hugging Face, CLIP": (lambda folder: huggingface(folder, "CLIPVisionModel"), None),
    "Hugging Face, SigLIP": (lambda folder: huggingface(folder, "SiglipVisionModel"), None),
    "DINO": (lambda folder: save(folder / "x.pth", both(PLAIN)), 3),
    "iBOT": (lambda folder: save(folder / "x.pth", {"state_dict": IBOT}), 3),
    "MoCo-v3": (
        lambda folder: save(folder / "x.pth", prefixed("module.base_encoder.", with_fixed_positions(FIXED))), None
    ),
    "MAE": (lambda folder: save(folder / "x.pth", {"model": with_fixed_positions(PLAIN, "column first")}), 3),
    "DINOv2": (lambda folder: save(folder / "x.pth", encoder(layer_scale=LS, patch=14)), 3),
    "DINOv3, Meta": (lambda folder: save(folder / "x.pth", meta()), 3),
    "DINOv3, timm": (lambda folder: save(folder / "x.pth", timm_names(meta())), 3),
    "DINOv3, Hugging Face": (lambda folder: save(folder / "x.pth", huggingface_names(meta())), 3),
    "CLIP, OpenAI": (lambda folder: save(folder / "x.pt", prefixed("visual.", clip_tensors()) | OPENAI), 3),
    "SelfPatch": (lambda folder: save(folder / "x.pth", without(PLAIN, r"cls_token|^norm\.|pos_embed") | {
        "pos_embed": PLAIN["pos_embed"][:, 1:]}), 3),
    "Swin": (swin, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("origin", ORIGINS)
def test_all_tensors_arrive_in_student_and_teacher(origin, images, tmp_path, capsys):
    make, heads = ORIGINS[origin]
    path = make(tmp_path)
    settings = SETTINGS | ({"backbone.num_heads": heads} if heads else {})
    pretrain(images, tmp_path / "run", recipe="continue", settings=settings, init_from=path)
    source = load_backbone(path, num_heads=heads)
    held = load_file(tmp_path / "run/checkpoints/step-00000001/model.safetensors")
    for network in ("student", "teacher"):
        own = {n.removeprefix(f"{network}.backbone.model."): t for n, t in held.items() if n.startswith(f"{network}.b")}
        theirs = source.model.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert "tensors match" in (shown := capsys.readouterr().out)
    assert ("aggregator.image-token aggregator: there is no class token" in shown) == (not source.has_cls_token)

    # The network is the same too: activations, epsilons, positions at a size that it was not made for.
    if origin != "SelfPatch":  # whose norm is the new one of the aggregator
        exported = load_backbone(tmp_path / "run")
        sample = torch.randn(1, 3, *(5 * side for side in source.patch_size))
        source.pos_embed_interpolation = "antialias"  # as what is shipped
        with torch.no_grad():
            tokens, expected = exported(sample), source(sample)
        torch.testing.assert_close(tokens.patch_tokens, expected.patch_tokens, rtol=1e-4, atol=1e-5)
        assert (exported.mean, exported.std) == (source.mean, source.std)


def test_patches_of_new_objectives_train_beside(images, tmp_path):
    settings = SETTINGS | {"objectives.neco.hidden_dim": 16, "objectives.neco.output_dim": 8, "optim.steps": 2}
    path = exported(tmp_path, "registers")
    result = pretrain(images, tmp_path / "run", recipe="continue-neco", settings=settings, init_from=path)
    assert result.steps_done == 1


def test_goes_on_without_the_weights(images, tmp_path):
    """The network is that of the run by then; config.yaml alone builds it, and what was derived stays."""
    path = huggingface(tmp_path, "Dinov2WithRegistersModel")
    pretrain(images, tmp_path / "run", recipe="continue-selfpatch", settings=SETTINGS, init_from=path)
    (path / "model.safetensors").unlink()
    settings = SETTINGS | {"run.stop_at_step": 2}
    assert pretrain(images, tmp_path / "run", recipe="continue-selfpatch", settings=settings).steps_done == 2
    config = read_yaml(tmp_path / "run/config.yaml")
    assert pretrain(images, tmp_path / "run", config=config, settings={"run.stop_at_step": 3}).steps_done == 3
    assert "reg_tokens=4" in config.backbone.model_kwargs and config.backbone.image_size == 24
    assert config.aggregator is not None and config.aggregator.image_token == "aggregator"


def test_patch_size_of_its_own_keeps_the_grid_of_positions(images, tmp_path):
    settings = SETTINGS | {"backbone.patch_size": 16, "backbone.num_heads": 3}
    path = save(tmp_path / "x.pth", PLAIN)
    pretrain(images, tmp_path / "run", recipe="continue", settings=settings, init_from=path)
    held = load_file(tmp_path / "run/checkpoints/step-00000001/model.safetensors")
    assert torch.equal(held["student.backbone.model.pos_embed"], PLAIN["pos_embed"])
    assert held["student.backbone.model.patch_embed.proj.weight"].shape[-1] == 16


# Refused


@pytest.fixture
def refused(capsys, images, tmp_path):
    def check(*arguments, says: str) -> str:
        command = ["pretrain", images, tmp_path / "out", "--run.device", "cpu", "--optim.batch-size", 2, *arguments]
        return Refused(capsys)(command, says, out=tmp_path / "out")

    return check


@pytest.mark.parametrize("recipe", CONTINUE_RECIPES)
def test_recipes_ask_for_weights(recipe, refused):
    refused("--recipe", recipe, says=f"recipe {recipe} continues weights, and none are given; name them by --init-from")


def test_swin_takes_no_settings_of_plain_transformers(refused, tmp_path):
    start = ("--recipe", "continue", "--init-from", swin(tmp_path))
    refused(*start, "--backbone.depth", 3, says=r"backbone.depth is 3, but swin_tiny.* is a Swin transformer")
    refused(
        *start, "--backbone.pos-embed-interpolation", "offset", says="a Swin transformer, whose positions are relative"
    )
    refused(*start, "--backbone.class-token", "True", says="a Swin transformer, .* no class token; leave it out")


def test_windows_of_another_size(refused, tmp_path):
    """A Swin that is built for small crops has smaller windows than that of the weights."""
    arguments = [
        "--backbone.name",
        "swin_tiny_patch4_window7_224",
        "--backbone.embed-dim",
        24,
        "--recipe",
        "dino-small",
    ]
    arguments += ["--backbone.class-token", "None", "--backbone.final-norm", "True", "--crops.global-size", 64]
    arguments += ["--backbone.model-kwargs", "depths=(2,2)", "num_heads=(2,4)", "window_size=2"]
    says = r"attention windows of another size .* 64 x 64 pixels.*--backbone.image-size 64"
    refused(*arguments, "--init-from", swin(tmp_path), says=says)


def test_an_image_token_that_nothing_makes(refused, tmp_path):
    start = ("--recipe", "continue", "--init-from", huggingface(tmp_path, "SiglipVisionModel"))
    refused(*start, "--aggregator.image-token", "class_token", says="no class token to describe an image")


def test_a_window_larger_than_the_grid(refused, tmp_path):
    start = ("--recipe", "continue-selfpatch", "--init-from", exported(tmp_path, "class token"))
    refused(
        *start,
        "--crops.global-size",
        16,
        "--crops.num-local",
        0,
        says="a crop of 2 x 2 patches is smaller than the window of 3 x 3",
    )


def test_crops_that_are_no_whole_patches(refused, tmp_path):
    path = save(tmp_path / "x.pth", encoder(layer_scale=LS, patch=14))
    start = ("--recipe", "continue", "--init-from", path, "--backbone.num-heads", 3)
    refused(
        *start, "--crops.global-size", 112, "--crops.local-size", 48, says="crops.local-size 48 .* the nearest is 42"
    )


def test_fewer_images_than_a_batch(refused, tmp_path):
    start = ("--recipe", "continue", "--init-from", exported(tmp_path, "class token"))
    refused(*start, "--optim.batch-size", 8, says="4 images do not fill one batch of 8")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "facebook/dinov2-small",
            r"fetch model.safetensors, config.json .* https://huggingface.co/facebook/dinov2-small",
        ),
        ("timm:vit_smal_patch16_224", "unknown backbone 'vit_smal_patch16_224'; timm has no such model. Nearest: vit_"),
        ("timm:resnet50", "timm cannot build .resnet50. .* Backbones are vision transformers"),
        ("timm:vit_small_r26_s32_224", "has a convolutional network before its blocks"),
        (
            "timm:vit_small_patch16_224.nobody",
            "timm has no weights 'nobody' of vit_small_patch16_224; it has: vit_small_patch16_224.augreg",
        ),
    ],
)
def test_sources_that_are_none(source, says, refused):
    refused("--recipe", "continue", "--init-from", source, says=says)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ("reg_tokens", "backbone.model-kwargs has 'reg_tokens'; arguments are written name=value"),
        ("checkpoint_path=x.pth", "backbone.model-kwargs: argument checkpoint_path is x.pth, allowed is nothing"),
        ("depths=(1,2)", "timm cannot build 'vit_tiny_patch16_224'"),
    ],
)
def test_arguments_that_timm_does_not_get(kwargs, says, refused):
    refused("--recipe", "dino-small", "--backbone.model-kwargs", kwargs, says=says)


def test_download_that_fails(refused, monkeypatch):
    """A gated or absent file: which one to fetch, and where to put it."""

    def fail(name, **_):
        raise OSError("401 Client Error: access is restricted.")

    monkeypatch.setattr("selfpatch.backbones.timm_weights.create_timm", fail)
    name = "vit_small_patch16_dinov3.lvd1689m"
    says = rf"{name}.: 401 .* fetch \S+ from https://huggingface.co/timm/{name} .* into a folder with the name {name}"
    refused("--recipe", "continue", "--init-from", f"timm:{name}", says=says)


def test_masks_with_a_backbone_that_has_none():
    backbone = small_vit("class token")
    with pytest.raises(UserError, match="vit_tiny_patch16_224 has none that could be masked; leave out its masks"):
        Backbone.enable_masks(backbone)
