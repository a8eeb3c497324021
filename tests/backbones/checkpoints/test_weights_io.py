"""What stands beside weights in a checkpoint is kept or passed over without running anything; the rest is refused."""

import argparse
import collections
import datetime
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from selfpatch.backbones.checkpoints.weights_io import Inert, read_checkpoint
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from tests.backbones.checkpoints.layouts import encoder, save


class Stranger:
    """A class that this package does not know."""


BESIDE = {
    "numpy numbers": [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)],
    "numpy array": np.arange(6.0).reshape(2, 3),
    "numpy array of names": np.array(["a", "b"]),
    "numpy data type": np.dtype("float64"),
    "arguments": argparse.Namespace(lr=np.float64(0.1), out=pathlib.Path("x"), nested=argparse.Namespace(a=1)),
    "path": pathlib.PurePosixPath("a/b"),
    "simple namespace": types.SimpleNamespace(a=1),
    "default dictionary": collections.defaultdict(list, {"a": [1]}),
    "ordered dictionary": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "time": datetime.datetime(2026, 1, 1),
    "duration": datetime.timedelta(1),
    "set": {1, 2},
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("is_zip", [True, False])
def test_values_beside_weights(name, is_zip, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": encoder(), "beside": BESIDE[name]}, path, _use_new_zipfile_serialization=is_zip)
    assert torch.equal(load_backbone(path, num_heads=3).model.norm.bias, encoder()["norm.bias"])


def test_best_score_of_a_training_loop(tmp_path):
    """numpy 1 wrote numpy.core where numpy 2 writes numpy._core; neither is imported."""
    path = save(tmp_path / "model.pth", {"state_dict": encoder(), "best": np.float64(0.7)})
    old = tmp_path / "old.pth"
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    torch.save({"state_dict": encoder(), "best": np.float64(0.7)}, old, _use_new_zipfile_serialization=False)
    old.write_bytes(old.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    for file in (path, old):
        checkpoint = read_checkpoint(file)
        assert isinstance(checkpoint.values["best"], Inert)
        assert torch.equal(checkpoint.tensors["state_dict.norm.bias"], encoder()["norm.bias"])


def test_dictionaries_of_other_packages(tmp_path):
    """EasyDict and Lightning's AttributeDict are subclasses of dict, whose weights are found like others."""
    module = types.ModuleType("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "easydict", module)
        held = module.EasyDict(encoder())
        held.note = "an attribute"
        path = save(tmp_path / "model.pth", {"model": held, "config": module.EasyDict(lr=0.1)})
    assert torch.equal(load_backbone(path, num_heads=3).model.norm.bias, encoder()["norm.bias"])
    assert read_checkpoint(path).values["config"] == {"lr": 0.1}


def test_arguments_are_kept_by_name(tmp_path):
    path = save(tmp_path / "model.pth", {"args": argparse.Namespace(mean=[0.5, 0.5, 0.5], arch="vit_small")})
    assert read_checkpoint(path).values["args"] == {"mean": [0.5, 0.5, 0.5], "arch": "vit_small"}


@pytest.mark.parametrize(
    ("beside", "named"),
    [(Stranger(), "Stranger"), (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), (print, "print")],
)
def test_other_objects_are_refused_with_a_way_out(beside, named, tmp_path):
    path = save(tmp_path / "model.pth", {"model": encoder(), "beside": beside})
    with pytest.raises(UserError, match=rf"it holds [\w.]*{named}, .*never executed.*save_file") as error:
        load_backbone(path, num_heads=3)
    assert "\n" not in str(error.value)


def test_archive_of_torchscript_is_refused_with_a_way_out(tmp_path, recwarn):
    archive = torch.jit.script(nn.Linear(2, 2))
    archive.save(str(tmp_path / "model.pt"))
    with pytest.raises(UserError, match=r"TorchScript archive, .*never executed.*torch.jit.load"):
        load_backbone(tmp_path / "model.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype, tmp_path):
    tensors = {name: tensor.to(dtype) for name, tensor in encoder().items()}
    backbone = load_backbone(save(tmp_path / "model.pth", tensors), num_heads=3)
    assert backbone.model.norm.bias.dtype == torch.float32
    assert torch.equal(backbone.model.norm.bias, tensors["norm.bias"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool, torch.complex64])
def test_quantized_weights_are_refused(dtype, tmp_path):
    tensors = encoder() | {"norm.bias": torch.zeros(24).to(dtype)}
    with pytest.raises(UserError, match=f"holds no weights in norm.bias: a tensor of {dtype}.*before it was quantized"):
        load_backbone(save(tmp_path / "model.pth", tensors), num_heads=3)
