"""Segmentation heads against mmsegmentation's: every heads kit below SELFPATCH_PARITY_KITS (see kits/README.md)."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selfpatch.evaluation.segmentation.segmentation_heads import FPNNeck, SemanticFPNHead, UPerHead
from tests.parity.kits import ROOTS, find_kits

KITS = find_kits("heads.safetensors", "settings.json")
KNOWN = {
    "in_channels", "fpn_channels", "semantic_fpn_channels", "num_classes", "upernet_channels", "pool_scales",
    "feature_strides", "align_corners", "batch_norm_eps",
}  # fmt: skip


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, scope="module")
def kit(request) -> tuple[dict, dict[str, torch.Tensor]]:
    settings = json.loads((request.param / "settings.json").read_text())
    return settings, load_file(request.param / "heads.safetensors")


def test_kits_are_found():
    assert KITS, f"no kit of segmentation heads below {ROOTS}"


def test_kit_settings_are_all_used(kit):
    """A setting that we do not know would pass unnoticed."""
    assert kit[0].keys() <= KNOWN


def test_outputs(kit):
    """Neck, Semantic FPN and UPerNet on maps of one stride and on a pyramid."""
    settings, tensors = kit
    layouts = sorted({name.split(".")[1] for name in tensors if name.startswith("input.")})
    assert layouts
    parts = build(settings, num_levels=sum(name.startswith(f"input.{layouts[0]}.") for name in tensors))
    for name, part in parts.items():
        weights = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        part.load_state_dict(weights, strict=True)
    for layout in layouts:
        maps = [tensors[f"input.{layout}.{i}"] for i in range(len(parts["neck"].lateral_convs))]
        with torch.no_grad():
            levels = parts["neck"](maps)
            ours = {f"neck.{i}": level for i, level in enumerate(levels)}
            ours |= {"semantic_fpn": parts["semantic_fpn"](levels), "upernet": parts["upernet"](maps)}
        expected = {name for name in tensors if name.startswith(f"output.{layout}.")}
        assert expected == {f"output.{layout}.{name}" for name in ours}
        for name, value in ours.items():
            torch.testing.assert_close(value, tensors[f"output.{layout}.{name}"], rtol=1e-5, atol=1e-5, msg=name)


def build(settings: dict, num_levels: int) -> dict[str, nn.Module]:
    widths = [settings["in_channels"]] * num_levels
    parts = {
        "neck": FPNNeck(widths, settings["fpn_channels"]),
        "semantic_fpn": SemanticFPNHead(
            settings["fpn_channels"],
            settings["semantic_fpn_channels"],
            settings["num_classes"],
            strides=settings["feature_strides"],
            align_corners=settings["align_corners"],
        ),
        "upernet": UPerHead(
            widths,
            settings["upernet_channels"],
            settings["num_classes"],
            pool_scales=settings["pool_scales"],
            align_corners=settings["align_corners"],
        ),
    }
    for part in parts.values():
        for module in part.eval().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = settings["batch_norm_eps"]
    return parts
