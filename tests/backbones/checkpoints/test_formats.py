"""Tiny checkpoints with the names of the original programs, against a plain forward by these names."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from selfpatch.backbones.checkpoints.checkpoint_format import NUM_HEADS
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import (
    chunked,
    encoder,
    prefixed,
    save,
    with_fixed_positions,
    without,
    zeros,
)
from tests.reference import plain_vit
from tests.reference.plain_position_resampling import resample_positions, resample_positions_antialiased

HEAD = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight": torch.zeros(2, 2)}
LS = ("ls1.gamma", "ls2.gamma")
MASK = {"mask_token": torch.zeros(1, 24)}
DINOV2 = encoder(layer_scale=LS, patch=14)
CHUNKED = encoder(layer_scale=LS, patch=14, depth=4)
REGISTERS = encoder(layer_scale=LS, patch=14, num_registers=4)
GIANT = encoder(layer_scale=LS, patch=14, gated=True)
GIANT_REGISTERS = encoder(layer_scale=LS, patch=14, gated=True, num_registers=2)
IBOT = encoder()
IBOT_SCALED = encoder(layer_scale=("gamma_1", "gamma_2"))
MOCO = with_fixed_positions(encoder(width=384, depth=1))


class Case(NamedTuple):
    plain: dict[str, Tensor]  # under the original's names
    content: object  # of the file
    num_heads: int | None
    heads: int
    resample: Callable
    says: tuple[str, ...]


CASES = {
    "iBOT, training state": Case(
        IBOT,
        {
            "student": prefixed("module.", prefixed("backbone.", zeros(IBOT) | {"masked_embed": torch.ones(1, 24)}) | HEAD),
            "teacher": prefixed("backbone.", IBOT | {"masked_embed": torch.ones(1, 24)}) | HEAD,
            "args": argparse.Namespace(arch="vit_small", patch_size=16),
            "epoch": 800,
            "ibot_loss": {"center": torch.zeros(1, 8), "center2": torch.zeros(1, 1, 8)},
        },
        3, 3, resample_positions, ("teacher.backbone of the checkpoint", "read as iBOT", "left out.*: masked_embed"),
    ),
    "iBOT, published": Case(
        IBOT, {"state_dict": IBOT | {"masked_embed": torch.ones(1, 24)}}, 3, 3, resample_positions, ("state_dict of", "iBOT")
    ),
    "iBOT, layer scale": Case(IBOT_SCALED, IBOT_SCALED, 3, 3, resample_positions, ("read as iBOT",)),
    "MoCo-v3, training state": Case(
        MOCO,
        {
            "arch": "vit_small",
            "epoch": 300,
            "state_dict": prefixed("module.momentum_encoder.", zeros(MOCO) | HEAD)
            | prefixed("module.base_encoder.", MOCO | HEAD)
            | {"module.predictor.0.weight": torch.zeros(2, 2)},
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        },
        None, 12, resample_positions_antialiased, ("state_dict.module.base_encoder", "read as MoCo-v3", "left out.*: head"),
    ),
    "MoCo-v3, cut out": Case(MOCO, {"model": MOCO}, None, 12, resample_positions_antialiased, ("read as MoCo-v3",)),
    "DINOv2, published": Case(
        DINOV2, DINOV2 | MASK, 3, 3, resample_positions, ("34 of 34 tensors match", "read as DINOv2", "left out.*: mask_token")
    ),
    "DINOv2, teacher in chunks": Case(
        CHUNKED,
        {"teacher": prefixed("backbone.", chunked(CHUNKED, 2) | MASK) | prefixed("dino_", HEAD)},
        3, 3, resample_positions, ("62 of 62 tensors match", "teacher.backbone of the checkpoint"),
    ),
    "DINOv2, training state": Case(
        DINOV2,
        {"model": prefixed("student.backbone.", zeros(DINOV2) | MASK) | prefixed("teacher.backbone.", DINOV2 | MASK)},
        3, 3, resample_positions, ("model.teacher.backbone of the checkpoint",),
    ),
    "DINOv2, registers": Case(
        REGISTERS, REGISTERS | MASK, 3, 3, resample_positions_antialiased, ("35 of 35 tensors match",)
    ),
    "DINOv2, giant": Case(GIANT, GIANT | MASK, 3, 3, resample_positions, ("34 of 34 tensors match",)),
    "DINOv2, giant with registers": Case(
        GIANT_REGISTERS, GIANT_REGISTERS | MASK, 3, 3, resample_positions_antialiased, ("35 of 35 tensors match",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_tokens_are_those_of_the_original(case, grid, tmp_path):
    plain, content, num_heads, heads, resample, says = CASES[case]
    backbone = load_backbone(save(tmp_path / "model.pth", content), num_heads=num_heads)
    side = plain["patch_embed.proj.weight"].shape[-1]
    image = torch.randn(3, grid[0] * side, grid[1] * side, generator=torch.Generator().manual_seed(1))
    cls_token, patch_tokens = plain_vit.forward(plain, image, heads, resample)
    with torch.no_grad():
        tokens = backbone(image[None])
    assert tokens.grid_size == grid and backbone.num_heads == heads
    torch.testing.assert_close(tokens.patch_tokens[0], patch_tokens.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.cls_token[0], cls_token.float(), rtol=1e-5, atol=1e-5)
    for text in says:
        assert re.search(text, "\n".join(backbone.notes)), backbone.notes


@pytest.mark.parametrize(
    "case", ["DINOv2, registers", "DINOv2, giant", "DINOv2, giant with registers", "iBOT, layer scale"]
)
def test_what_was_read_can_be_exported(case, tmp_path):
    backbone = load_backbone(
        save(tmp_path / "model.pth", CASES[case].content), num_heads=3, pos_embed_interpolation="antialias"
    )
    export_timm(backbone, tmp_path / "backbone.safetensors")
    again = load_backbone(tmp_path)
    x = torch.randn(1, 3, 28 * 2, 56)
    with torch.no_grad():
        assert torch.equal(again(x).patch_tokens, backbone(x).patch_tokens)


def test_heads_of_384_channels_depend_on_the_program(tmp_path):
    dino = encoder(width=384, depth=1)
    assert load_backbone(save(tmp_path / "dino.pth", dino)).num_heads == NUM_HEADS[384] == 6
    assert load_backbone(save(tmp_path / "moco.pth", with_fixed_positions(dino))).num_heads == 12
    assert load_backbone(tmp_path / "moco.pth", num_heads=6).num_heads == 6


LOOP: dict[str, object] = {}
LOOP["again"] = LOOP
DEEP: dict[str, object] = {}
for _ in range(100):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without(DINOV2, "mlp"), r"26 of 34 tensors match; 8 missing: blocks.0.mlp.fc1.weight.*Every tensor"),
        (DINOV2 | {f"blocks.{i}.extra": torch.zeros(1) for i in range(2)} | {"norm.extra": torch.zeros(1), "norm.b": torch.zeros(1)}, "34 of 38 tensors match; 4 unexpected: blocks.0.extra"),
        (without(REGISTERS, "cls_token"), r"10 positions, no class token and 4 registers"),
        (REGISTERS | {"cls_token": torch.zeros(1, 2, 24)}, r"registers, class token and positions are cls_token \(1, 2, 24\)"),
        (REGISTERS | {"pos_embed": torch.zeros(1, 11, 24)}, r"11 positions, one class token and 4 registers"),
        (REGISTERS | {"register_tokens": torch.zeros(4, 24)}, r"reg_token \(4, 24\), .*; they do not fit together"),
        (DINOV2 | {"pos_embed": torch.zeros(10, 24)}, r"pos_embed of three are sought; it has \(24, 3, 14, 14\) and \(10, 24\)"),
        (without(DINOV2, "pos_embed"), r"it has \(24, 3, 14, 14\) and none"),
        (DINOV2 | {"patch_embed.proj.weight": torch.zeros(0, 3, 14, 14)}, r"it has \(0, 3, 14, 14\)"),
        (DINOV2 | {"norm.bias": torch.full((24,), math.nan)}, "not finite in 1 of 34 tensors: norm.bias; such weights"),
        (DINOV2 | {"blocks.1.ls2.gamma": torch.full((24,), math.inf)}, "not finite in 1 of 34 tensors: blocks.1.ls2.gamma"),
        (DINOV2 | {"norm.bias": torch.zeros(24, dtype=torch.int64)}, "holds no weights in norm.bias: a tensor of torch.int64"),
        (DINOV2 | {"norm.bias": torch.zeros(24, device="meta")}, "holds no weights in norm.bias: .* on meta"),
        (DINOV2 | {"norm.bias": torch.zeros(1).expand(24)}, "holds no weights in norm.bias"),
        (DEEP, "nests dictionaries more than 16 deep"),
        (LOOP, "nests dictionaries more than 16 deep"),
    ],
    ids=range(16),
)  # fmt: skip
def test_files_that_hold_no_backbone(content, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(save(tmp_path / "model.pth", content), num_heads=3)
    assert str(tmp_path / "model.pth") in str(error.value) and "\n" not in str(error.value)


def test_half_precision_is_read(tmp_path):
    halved = {name: tensor.half() for name, tensor in DINOV2.items()}
    backbone = load_backbone(save(tmp_path / "model.pth", halved), num_heads=3)
    assert torch.equal(backbone.model.norm.bias, DINOV2["norm.bias"].half().float())


def test_a_few_numbers_spread_over_a_giant_take_no_memory(tmp_path):
    """Every tensor of a network of 2 TB, in a file of some kB."""
    giant = {
        name: torch.zeros(1).expand([side if side in (1, 3, 14) else 400 * side for side in t.shape])
        for name, t in DINOV2.items()
    }
    giant["pos_embed"] = torch.zeros(1).expand(1, 10, 9600)
    giant["patch_embed.proj.weight"] = torch.zeros(1).expand(9600, 3, 14, 14)
    path = save(tmp_path / "model.pth", giant)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="holds no weights in cls_token"):
        load_backbone(path, num_heads=3)


class Bomb:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("case", CASES)
def test_code_in_a_file_is_never_run(case, tmp_path):
    canary = tmp_path / "canary"
    path = save(tmp_path / "model.pth", {"content": CASES[case].content, "bomb": Bomb(canary)})
    with pytest.raises(ValueError, match="no checkpoint that can be read safely.*never executed"):
        load_backbone(path, num_heads=3)
    assert not canary.exists()
