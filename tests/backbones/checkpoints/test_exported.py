"""The file that a run or an export writes, with metadata as they should be, and as nobody wrote them."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.small_vits import small_vit


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
        ({"arguments": json.dumps(ARGUMENTS | {"img_size": 32, "embed_dim": 60_000})}, "30 mismatched"),
    ],
)
def test_metadata_that_does_not_fit(changes, message, tmp_path):
    file = changed_metadata(tmp_path, **changes)
    if message is None:
        load_backbone(file)
    else:
        with pytest.raises(ValueError, match=message):
            load_backbone(file)


def fits(**changes: object) -> str:
    return json.dumps(ARGUMENTS | {"img_size": 32, "embed_dim": 24} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": fits(depth=1_000_000)},
        {"arguments": fits(depth=-1)},
        {"arguments": fits(depth=2.0)},
        {"arguments": fits(depth=True)},
        {"arguments": fits(num_heads=0)},
        {"arguments": fits(num_heads=-3)},
        {"arguments": fits(patch_size=0)},
        {"arguments": fits(patch_size=[8, 0])},
        {"arguments": fits(patch_size=[8, 8, 8])},
        {"arguments": fits(img_size=-32)},
        {"arguments": fits(img_size=10**9)},
        {"arguments": fits(embed_dim=600_000_000)},
        {"arguments": fits(img_size=8192, patch_size=1)},
        {"arguments": fits(embed_dim=[24, 24])},
        {"arguments": fits(num_classes=10**9)},
        {"arguments": fits(reg_tokens=10**12)},
        {"arguments": fits(mlp_ratio=1e300)},
        {"arguments": fits(act_layer="os.system")},
        {"arguments": fits(class_token="yes")},
        {"arguments": fits(global_pool=["", ""])},
        {"arguments": '{"depth": NaN}'},
        {"arguments": "[" * 100_000 + "]" * 100_000},
        {"arguments": '{"img_size": ' + "[" * 100_000 + "]" * 100_000 + "}"},
        {"mean": "[" * 100_000},
        {"std": "[0, 0, 0]"},
        {"std": "[0.2, 0.2, -0.2]"},
        {"std": "[NaN, 0.2, 0.2]"},
        {"mean": "[Infinity, 0, 0]"},
        {"mean": "[1e400, 0, 0]"},
        {"mean": "[1" + "0" * 400 + ", 0, 0]"},
        {"mean": "[123.7, 116.3, 103.5]"},
        {"norm_eps": "-1.0"},
        {"norm_eps": '"x"'},
    ],
    ids=range(33),
)
def test_crafted_metadata_is_refused_quickly(changes, tmp_path):
    file = changed_metadata(tmp_path, **changes)
    start = time.monotonic()
    with pytest.raises(UserError, match="metadata that no export wrote") as error:
        load_backbone(file)
    assert time.monotonic() - start < 5
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["blocks.1.norm2.bias", "cls_token", "norm.weight"])
def test_missing_tensor_is_refused(name, tmp_path):
    file = changed_metadata(tmp_path)
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    save_file({key: value for key, value in load_file(file).items() if key != name}, file, metadata=metadata)
    with pytest.raises(UserError, match=f"1 missing: {name}"):
        load_backbone(file)


def test_epsilon_of_norms_comes_back(tmp_path):
    """Hugging Face's ViT has 1e-12, where timm builds 1e-6."""
    backbone = small_vit("class token")
    for module in backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3
    export_timm(backbone, tmp_path / "backbone.safetensors")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path)(x).patch_tokens, backbone(x).patch_tokens)
