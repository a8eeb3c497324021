import argparse
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfpatch.backbones import pretrained
from selfpatch.backbones.pretrained import load_backbone, load_weights
from selfpatch.data.augmentation.normalize import normalize
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
    assert "ca_head.norm" in backbone.notes[2]


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
    assert (backbone.num_heads, backbone.patch_size, backbone.pos_embed_interpolation) == (3, (16, 16), "dino")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, expected = backbone(x), plain(x)
        torch.testing.assert_close(tokens.patch_tokens, expected.patch_tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.cls_token, expected.cls_token, rtol=1e-5, atol=1e-5)


def test_original_can_be_exported(tmp_path):
    for path in (KIT / "initial.safetensors", save_pth(tmp_path / "bare.pth", original_backbone())):
        backbone = load_backbone(path, num_heads=HEADS, pos_embed_interpolation="timm")
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


# The 90 % rule


@pytest.mark.parametrize(("lost", "fits"), [(3, True), (4, False)])
def test_nine_of_ten_tensors_must_be_there(lost, fits, tmp_path):
    """Of 39 tensors, 36 are 92 % and 35 are 89.7 %."""
    tensors = original_backbone()
    for name in [name for name in tensors if name.startswith("blocks.0.mlp") or name.startswith("blocks.1.mlp")][:lost]:
        del tensors[name]
    path = save_pth(tmp_path / "backbone.pth", tensors)
    if fits:
        backbone = load_backbone(path, num_heads=HEADS)
        assert backbone.notes[0].startswith("36 of 39 tensors match; 3 missing: blocks.0.mlp")
    else:
        with pytest.raises(ValueError, match=r"35 of 39 tensors match; 4 missing: blocks.0.mlp.*At least 90 %"):
            load_backbone(path, num_heads=HEADS)


def test_exactly_nine_of_ten_is_enough(tmp_path):
    """Tensors that the file has in addition, within the backbone, count as well."""
    backbone = small_vit("class token", depth=1, embed_dim=192)
    tensors = backbone.model.state_dict() | {"norm.extra": torch.zeros(1), "norm.more": torch.zeros(1)}
    loaded = load_backbone(save_pth(tmp_path / "a.pth", tensors))
    assert loaded.notes == ("18 of 20 tensors match; 2 unexpected: norm.extra, norm.more",)
    with pytest.raises(ValueError, match="18 of 21 tensors match"):
        load_backbone(save_pth(tmp_path / "b.pth", tensors | {"blocks.0.other": torch.zeros(1)}))


def test_missing_tensors_are_always_the_same(tmp_path):
    tensors = original_backbone()
    del tensors["blocks.0.attn.qkv.weight"]
    path = save_pth(tmp_path / "backbone.pth", tensors)
    torch.manual_seed(1)
    first = load_backbone(path, num_heads=HEADS).model.blocks[0].attn.qkv.weight
    torch.manual_seed(2)
    assert torch.equal(first, load_backbone(path, num_heads=HEADS).model.blocks[0].attn.qkv.weight)


# Weights into an existing backbone


@pytest.mark.parametrize("family", ["class token", "registers", "RoPE"])
def test_load_weights_resamples_positions(family, tmp_path):
    source = small_vit(family)
    export_timm(source, tmp_path / "backbone.safetensors")
    target = small_vit(family)
    target.model.set_input_size(img_size=(6 * source.patch_size[0], 3 * source.patch_size[1]))
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    match = load_weights(target, tmp_path)
    assert match[1:] == ([], [], [])
    x = torch.randn(1, 3, 6 * source.patch_size[0], 3 * source.patch_size[1])
    with torch.no_grad():
        torch.testing.assert_close(target.eval()(x).patch_tokens, source(x).patch_tokens, rtol=1e-5, atol=1e-5)


def test_load_weights_of_another_backbone(tmp_path):
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    target = small_vit("class token", embed_dim=48)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"0 of 30 tensors match; 30 mismatched: cls_token 1x1x24 for 1x1x48"):
        load_weights(target, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    with pytest.raises(ValueError, match=r"30 of 54 tensors match; 24 missing: blocks.2"):
        load_weights(small_vit("class token", depth=4), tmp_path)


@pytest.mark.parametrize("families", [("class token", "no class token"), ("no class token", "class token")])
def test_load_weights_where_one_has_a_class_token(families, tmp_path):
    """Patches keep their positions, and a class token the one it had."""
    source, target = (small_vit(family, patch_size=16) for family in families)
    export_timm(source, tmp_path / "backbone.safetensors")
    prefix = target.model.pos_embed[:, :-16].clone()
    torch.nn.init.zeros_(target.model.pos_embed[:, -16:])
    match = load_weights(target, tmp_path)
    assert torch.equal(target.model.pos_embed[:, -16:], source.model.pos_embed[:, -16:])
    assert torch.equal(target.model.pos_embed[:, :-16], prefix)
    assert match.missing == (["cls_token"] if target.has_cls_token else [])


def test_load_weights_resamples_patches(tmp_path):
    """An image enlarged with its patches looks to the larger patches as it looked to the smaller ones."""
    source, target = small_vit("class token", patch_size=8), small_vit("class token", patch_size=16)
    export_timm(source, tmp_path / "backbone.safetensors")
    match = load_weights(target, tmp_path)
    assert match[1:] == ([], [], [])
    smooth = torch.linspace(-1, 1, 32)[None, None, None, :].expand(1, 3, 32, 32)
    with torch.no_grad():
        expected = source.model.patch_embed(smooth)
        ours = target.model.patch_embed(F.interpolate(smooth, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.1)


# Exported files


def changed_metadata(tmp_path: Path, **changes: str | None) -> Path:
    file = tmp_path / "backbone.safetensors"
    backbone = small_vit("class token")
    export_timm(backbone, file)
    with safe_open(file, "pt") as content:
        metadata = content.metadata() | changes
    save_file(load_file(file), file, metadata={key: value for key, value in metadata.items() if value is not None})
    return file


ARGUMENTS = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True, "patch_size": 8, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selfpatch_format": "2"}, "has format '2'"),
        ({"arguments": None}, "metadata that no export wrote"),
        ({"arguments": "{"}, "metadata that no export wrote"),
        ({"arguments": "[1]"}, "metadata that no export wrote"),
        ({"mean": "[1, 2]"}, "metadata that no export wrote"),
        ({"mean": "1"}, "metadata that no export wrote"),
        ({"arguments": json.dumps({"checkpoint_path": "x.pth"})}, "metadata that no export wrote"),
        ({"arguments": json.dumps({"pretrained": True})}, "metadata that no export wrote"),
        ({"architecture": "hf-hub:somebody/something"}, "unknown backbone"),
        ({"architecture": "resnet18"}, "timm cannot build"),
        ({"architecture": "vit_small_patch16_224"}, None),  # what differs is given by the arguments
        ({"arguments": json.dumps(ARGUMENTS | {"img_size": 32, "embed_dim": 24, "depth": 3})}, "12 missing: blocks.2"),
        (
            {"arguments": json.dumps(ARGUMENTS | {"img_size": 32, "embed_dim": 24, "depth": 1})},
            "12 unexpected: blocks.1",
        ),
        ({"arguments": json.dumps(ARGUMENTS | {"img_size": 64, "embed_dim": 24})}, "pos_embed 1x17x24 for 1x65x24"),
        ({"arguments": json.dumps(ARGUMENTS | {"img_size": 32, "embed_dim": 600_000_000})}, "30 mismatched"),
    ],
)
def test_metadata_that_does_not_fit(changes, message, tmp_path):
    file = changed_metadata(tmp_path, **changes)
    if message is None:
        load_backbone(file)
    else:
        with pytest.raises(ValueError, match=message):
            load_backbone(file)


def test_plain_timm_resampling_unless_asked(tmp_path):
    export_timm(small_vit("class token", pos_embed_interpolation="dino"), tmp_path / "backbone.safetensors")
    assert load_backbone(tmp_path).pos_embed_interpolation == "timm"
    assert load_backbone(tmp_path, pos_embed_interpolation="dino").pos_embed_interpolation == "dino"


def test_it_comes_ready_for_evaluation(tmp_path):
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    assert not load_backbone(str(tmp_path)).training


# timm's own


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
    created, original = {}, pretrained.create_timm

    def create(name, **arguments):
        created[name] = arguments.pop("pretrained")
        model = original(name, **arguments)
        model.pretrained_cfg |= {"mean": (0.5, 0.5, 0.5)}
        return model

    monkeypatch.setattr(pretrained, "create_timm", create)
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
        ({"pos_embed": torch.zeros(1, 199, 48)}, "3 channels and 199 positions"),
        ({"patch_embed.proj.weight": torch.zeros(48, 1, 16, 16)}, "1 channels and 196 positions"),
        ({"patch_embed.proj.weight": torch.zeros(96, 3, 16, 16)}, r"36 mismatched: .* 48 for 96|mismatched"),
    ],
)
def test_shapes_that_do_not_fit(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_backbone(save_pth(tmp_path / "model.pth", original_backbone() | changes), num_heads=HEADS)
