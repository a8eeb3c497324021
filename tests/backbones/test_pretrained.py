import argparse
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from selfpatch.backbones import timm_weights
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.small_vits import small_vit

KIT = Path(__file__).parents[1] / "parity" / "kits" / "kit_a"
HEADS = 3  # of the kit


def original_tensors(network: str) -> dict[str, torch.Tensor]:
    initial = load_file(KIT / "initial.safetensors")
    return {name.removeprefix(f"{network}."): t for name, t in initial.items() if name.startswith(f"{network}.")}


def original_backbone() -> dict[str, torch.Tensor]:
    """What the authors' script that cuts out the backbone leaves."""
    teacher = original_tensors("teacher")
    return {name.removeprefix("backbone."): t for name, t in teacher.items() if name.startswith("backbone.")}


def kit_crops(which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of step 0 as the original got them, and its teacher's patch tokens, which no norm went over."""
    crops = load_file(KIT / "crops.safetensors")
    numbers = (0, 1) if which == "global" else (2, 3)
    images = torch.cat([crops[f"step0.crop{j}"] for j in numbers])
    normalized = normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return normalized, load_file(KIT / "activations.safetensors")[f"teacher.patch_tokens.{which}"]


def save_pth(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


# Checkpoints of the original programs


@pytest.mark.parametrize("which", ["global", "local"])
def test_bare_backbone_gives_the_originals_tokens(which, tmp_path):
    backbone = load_backbone(save_pth(tmp_path / "backbone.pth", original_backbone()), num_heads=HEADS)
    images, expected = kit_crops(which)
    with torch.no_grad():
        tokens = backbone(images)
    assert tokens.cls_token is None
    torch.testing.assert_close(tokens.patch_tokens, expected, rtol=1e-5, atol=1e-5)
    assert "no final norm" in " ".join(backbone.notes)
    assert "39 of 39 tensors match" in backbone.notes
    assert not any("assumed" in note for note in backbone.notes)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_whole_checkpoint_gives_the_teacher_through_the_aggregators_norm(prefix, tmp_path):
    teacher, student = original_tensors("teacher"), original_tensors("student")
    student = {name: torch.zeros_like(tensor) for name, tensor in student.items()}
    checkpoint = {
        "student": {prefix + name: tensor for name, tensor in student.items()},
        "teacher": {prefix + name: tensor for name, tensor in teacher.items()},
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, local_crops_scale=(0.05, 0.25), data_path="x"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    backbone = load_backbone(save_pth(tmp_path / "checkpoint.pth", checkpoint), num_heads=HEADS)
    images, expected = kit_crops("local")
    norm = {name: teacher[f"ca_head.norm.{name}"] for name in ("weight", "bias")}
    with torch.no_grad():
        tokens = backbone(images)
    torch.testing.assert_close(
        tokens.patch_tokens, F.layer_norm(expected, (48,), **norm, eps=1e-6), rtol=1e-5, atol=1e-5
    )
    assert backbone.notes[0] == "41 of 41 tensors match"
    assert "teacher" in backbone.notes[1]
    assert backbone.notes[2] == "read as SelfPatch"
    assert "ca_head.norm" in backbone.notes[3]


def test_names_in_one_flat_safetensors_file():
    backbone = load_backbone(KIT / "initial.safetensors", num_heads=HEADS)
    assert torch.equal(
        backbone.model.blocks[0].attn.qkv.weight, original_tensors("teacher")["backbone.blocks.0.attn.qkv.weight"]
    )


def test_dino_checkpoint_with_class_token(tmp_path):
    """Width 192 has 3 heads; positions have the class token's in front; the backbone has its own norm."""
    plain = small_vit("class token", embed_dim=192, depth=2, patch_size=16)
    state = {f"backbone.{name}": t for name, t in plain.model.state_dict().items()} | {
        "head.mlp.0.weight": torch.zeros(2, 2)
    }
    backbone = load_backbone(save_pth(tmp_path / "dino.pth", {"student": {}, "teacher": state}))
    assert (backbone.num_heads, backbone.patch_size, backbone.pos_embed_interpolation) == (3, (16, 16), "offset")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, expected = backbone(x), plain(x)
        torch.testing.assert_close(tokens.patch_tokens, expected.patch_tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.cls_token, expected.cls_token, rtol=1e-5, atol=1e-5)


def test_original_can_be_exported(tmp_path):
    for path in (KIT / "initial.safetensors", save_pth(tmp_path / "bare.pth", original_backbone())):
        backbone = load_backbone(path, num_heads=HEADS, pos_embed_interpolation="antialias")
        export_timm(backbone, tmp_path / "backbone.safetensors")
        again = load_backbone(tmp_path)
        x = torch.randn(1, 3, 32, 64)
        with torch.no_grad():
            assert torch.equal(again(x).patch_tokens, backbone(x).patch_tokens)


def test_number_of_heads_is_asked_for_and_checked(tmp_path):
    with pytest.raises(ValueError, match=r"48 wide.*num-heads"):
        load_backbone(KIT / "initial.safetensors")
    with pytest.raises(ValueError, match="timm cannot build"):
        load_backbone(KIT / "initial.safetensors", num_heads=5)
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match="3 attention heads, not 4"):
        load_backbone(tmp_path, num_heads=4)
    load_backbone(tmp_path, num_heads=3)


# Every tensor counts


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv.weight", "blocks.1.norm2.bias", "patch_embed.proj.bias", "norm.bias"]
)
def test_missing_tensor_is_an_error(name, tmp_path):
    """One of 39 was left random, and the rest loaded."""
    tensors = original_backbone() | {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    del tensors[name]
    path = save_pth(tmp_path / "backbone.pth", tensors)
    with pytest.raises(UserError, match=f"40 of 41 tensors match; 1 missing: {name}.*Every tensor of the encoder"):
        load_backbone(path, num_heads=HEADS)


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.relative_bias", "norm.extra", "dist_token", "rel_pos", "prompt_embeddings"]
)
def test_unknown_tensor_of_the_encoder_is_an_error(name, tmp_path):
    """What changes its features under a name that nobody here knows."""
    tensors = small_vit("class token", depth=1, embed_dim=192).model.state_dict()
    path = save_pth(tmp_path / "a.pth", tensors | {name: torch.zeros(1)})
    if name == "rel_pos":  # beside the encoder, and nothing that is known to change it
        assert load_backbone(path).notes[-1] == "left out, as no part of the encoder: rel_pos"
        return
    with pytest.raises(UserError, match=f"18 of 19 tensors match; 1 unexpected: {name}"):
        load_backbone(path)


# Exported files and timm's own


def test_plain_timm_resampling_unless_asked(tmp_path):
    export_timm(small_vit("class token", pos_embed_interpolation="offset"), tmp_path / "backbone.safetensors")
    assert load_backbone(tmp_path).pos_embed_interpolation == "antialias"
    assert load_backbone(tmp_path, pos_embed_interpolation="offset").pos_embed_interpolation == "offset"


def test_it_comes_ready_for_evaluation(tmp_path):
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    assert not load_backbone(str(tmp_path)).training


def test_random_weights_are_always_the_same_and_said():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_backbone("timm:vit_tiny_patch16_224")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = load_backbone("timm:vit_tiny_patch16_224")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    (note,) = first.notes
    assert note.startswith("random initialisation")
    assert "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k" in note


def test_weights_of_a_tag(monkeypatch, tmp_path):
    """Without the weights themselves, which there is no network for."""
    created, original = {}, timm_weights.create_timm

    def create(name, **arguments):
        created[name] = arguments.pop("pretrained")
        model = original(name, **arguments)
        model.pretrained_cfg |= {"mean": (0.5, 0.5, 0.5)}
        return model

    monkeypatch.setattr(timm_weights, "create_timm", create)
    backbone = load_backbone("timm:vit_tiny_patch16_224.augreg_in21k")
    assert created == {"vit_tiny_patch16_224.augreg_in21k": True}
    assert backbone.mean == (0.5, 0.5, 0.5)
    assert backbone.notes == ()
    assert backbone.architecture.name == "vit_tiny_patch16_224"
    monkeypatch.undo()
    export_timm(backbone, tmp_path / "backbone.safetensors")
    load_backbone(tmp_path)


def test_download_that_fails(monkeypatch):
    def fail(name, **arguments):
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ValueError, match=r"could not get the weights .*: Name or service not known. It downloads"):
        load_backbone("timm:vit_tiny_patch16_224.augreg_in21k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_22", "Nearest: .*vit_tiny_patch16_224"),
        ("vit_tiny_patch16_22.augreg_in21k", "Nearest: .*vit_tiny_patch16_224"),
        (
            "vit_tiny_patch16_224.dinov9",
            "no weights 'dinov9' of vit_tiny_patch16_224; it has: vit_tiny_patch16_224.augreg",
        ),
        ("resnet18", "timm cannot build 'resnet18'"),
        ("", "unknown backbone"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(f"timm:{name}")


# Files that are no backbone


def test_places_without_a_backbone(tmp_path):
    (tmp_path / "run-1").mkdir()
    with pytest.raises(ValueError, match=r"run-2 does not exist. Nearest there: run-1"):
        load_backbone(tmp_path / "run-2")
    with pytest.raises(ValueError, match=r"does not exist. A model is"):
        load_backbone(tmp_path / "nowhere" / "run-2")
    with pytest.raises(ValueError, match="run-1 is no run"):
        load_backbone(tmp_path / "run-1")
    (tmp_path / "run-1" / "config.yaml").write_text("recipe: dino\n")
    with pytest.raises(ValueError, match="run-1 has saved no backbone yet"):
        load_backbone(tmp_path / "run-1")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("format_", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
def test_a_pickle_bomb_does_not_go_off(format_, suffix, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / f"model{suffix}"
    content = {"teacher": original_backbone(), "args": Bomb(canary)}
    if format_ == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format_ == "zip")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_backbone(path, num_heads=HEADS)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1])
def test_damaged_files(name, kept, tmp_path):
    export_timm(small_vit("class token"), tmp_path / "model.safetensors")
    torch.save(original_backbone(), tmp_path / "model.pth")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_backbone(path, num_heads=HEADS)


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {"conv1.weight": torch.zeros(8, 3, 7, 7)}}, [1, 2], torch.zeros(3)]
)
def test_checkpoints_of_something_else(content, tmp_path):
    with pytest.raises(ValueError, match="holds no vision transformer of a known layout"):
        load_backbone(save_pth(tmp_path / "model.pth", content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": torch.zeros(1, 199, 48)}, "has 199 positions, no class token and 0 registers"),
        ({"patch_embed.proj.weight": torch.zeros(48, 1, 16, 16)}, "images of 1 channels"),
        ({"patch_embed.proj.weight": torch.zeros(96, 3, 16, 16)}, "96 wide, .*pos_embed .1, 196, 48.; they do not fit"),
    ],
)
def test_shapes_that_do_not_fit(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_backbone(save_pth(tmp_path / "model.pth", original_backbone() | changes), num_heads=HEADS)
