"""`evaluate --keep-head` and `predict`: the masks are those that were scored, for images of any size."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from selfpatch import cli
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands import evaluate as evaluate_command
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.segmentation import linear_segmentation, semantic_segmentation
from selfpatch.export.timm_file import export_timm
from tests.backbones.small_vits import small_vit
from tests.cli.conftest import refused  # noqa: F401
from tests.evaluation.labeled_scenes import write_ade20k

TINY = {
    "linear-segmentation": {"eval_interval": 4, "warmup_steps": 1, "lr": 0.05},
    "semantic-fpn": {"warmup_steps": 1, "fpn_channels": 8, "head_channels": 8, "long_side": 128, "lr": 1e-3},
    "upernet": {"warmup_steps": 1, "head_channels": 8, "auxiliary_channels": 8, "long_side": 128, "lr": 1e-3},
}
SHARED = {"image_size": 32, "stride": 20, "steps": 8, "batch_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_ade20k(tmp_path_factory.mktemp("data"), num_train=2, num_val=2, size=(40, 56))


@pytest.fixture(scope="module", params=TINY)
def kept(request, data, tmp_path_factory):
    """A task by its name, the folder of its evaluation, and the masks that it scored."""
    folder, task = tmp_path_factory.mktemp(request.param), request.param
    backbone = small_vit("class token", pos_embed_interpolation="offset")
    export_timm(backbone, folder / "backbone.safetensors")
    scored = {}

    def keep(predictions, *_):
        scored.update({item.image.name: mask for item, _, mask in predictions})

    with pytest.MonkeyPatch.context() as patch:
        for module in (linear_segmentation, semantic_segmentation):
            patch.setattr(module, "write_prediction_sheets", keep)
        # Positions as DINO has them, which a file for timm does not say: the head's file does.
        offset = lambda *a, **k: load_backbone(*a, **{**k, "pos_embed_interpolation": "offset"})  # noqa: E731
        patch.setattr(evaluate_command, "load_backbone", offset)
        protocol = replace(TASKS[task].presets["quick"], **SHARED, **TINY[task])
        evaluate_command.evaluate(
            folder / "backbone.safetensors",
            task=task, data=data, out=folder / "out", protocol=protocol, device="cpu", keep_head=True,
        )  # fmt: skip
    assert len(scored) == 2
    return task, folder / "out", scored


def test_masks_are_those_that_were_scored(kept, data, tmp_path, capsys):
    task, out, scored = kept
    assert cli.main(["predict", str(out), str(data / "images/validation"), str(tmp_path / "p"), "--device", "cpu"]) == 0
    assert "2 images in 4 classes" in capsys.readouterr().out
    for name, mask in scored.items():
        with Image.open(tmp_path / f"p/masks/{name}.png") as found:
            assert found.mode == "P"
            np.testing.assert_array_equal(np.asarray(found), mask)
            palette = np.array(found.getpalette()).reshape(-1, 3)
        with (
            Image.open(tmp_path / f"p/overlays/{name}.png") as found,
            Image.open(data / f"images/validation/{name}") as image,
        ):
            expected = (np.asarray(image, np.float64) + palette[mask]) / 2
            assert np.abs(np.asarray(found) - expected).max() <= 0.5
    classes = json.loads((tmp_path / "p/classes.json").read_text())
    assert [c["name"] for c in classes] == read_segmentation(data).class_names
    assert [c["color"] for c in classes] == palette[:4].tolist()
    assert json.loads((tmp_path / "p/predict.json").read_text())["task"] == task


def test_images_of_other_sizes_and_damaged_ones(kept, tmp_path, capsys):
    _, out, _ = kept
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (33, 90), (230, 40, 40)).save(tmp_path / "images/a/x.png")
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    arguments = ["predict", out / "model", tmp_path / "images", tmp_path / "p", "--no-overlays", "--device", "cpu"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert "1 of 2 images cannot be read" in capsys.readouterr().out
    with Image.open(tmp_path / "p/masks/a/x.png.png") as mask:
        assert mask.size == (33, 90)
    assert not (tmp_path / "p/overlays").exists()
    assert (tmp_path / "p/unreadable.txt").read_text().startswith("broken.png\t")


def test_no_head(refused, data, tmp_path):  # noqa: F811
    (tmp_path / "m").mkdir()
    refused(["predict", tmp_path / "m", data, tmp_path / "p"], "holds no head", "--keep-head", out=tmp_path / "p")


@pytest.mark.parametrize("damage", [b"", b"no tensors at all"])
def test_damaged_head(kept, damage, refused, data, tmp_path):  # noqa: F811
    import shutil

    shutil.copytree(kept[1] / "model", tmp_path / "m")
    (tmp_path / "m/head.safetensors").write_bytes(damage)
    refused(["predict", tmp_path / "m", data, tmp_path / "p"], "head.safetensors is damaged", out=tmp_path / "p")


@pytest.mark.parametrize(
    "options", [["--task", "in-context-segmentation"], ["--task", "linear-segmentation", "--preset", "leopart"]]
)
def test_tasks_whose_head_cannot_be_kept(options, refused, data, tmp_path):  # noqa: F811
    arguments = ["evaluate", "timm:vit_tiny_patch16_224", "--data", data, "--out", tmp_path / "o", "--keep-head"]
    refused([*arguments, *options], "--keep-head keeps", "upernet", out=tmp_path / "o")


@pytest.mark.slow
def test_onnx_of_a_linear_head_gives_the_masks_of_predict(kept, tmp_path, refused):  # noqa: F811
    """By the steps that the file states: one window and several, of an image that is not square."""
    onnxruntime = pytest.importorskip("onnxruntime")
    task, out, _ = kept
    arguments = ["export", out, tmp_path / "model.onnx", "--format", "onnx", "--with-head"]
    if task != "linear-segmentation":
        refused(arguments, f"a head of {task}", "linear-segmentation alone", out=tmp_path / "model.onnx")
        return
    assert cli.main([str(argument) for argument in arguments]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    mean, std, (side, _), stride = (json.loads(stated[name]) for name in ("mean", "std", "window", "stride"))
    assert "half-pixel centers" in stated["postprocessing"] and f"short side is {side} px" in stated["preprocessing"]
    assert len(json.loads(stated["class_names"])) == 4
    image = np.random.default_rng(0).integers(
        0, 256, (side, side + 9, 3), dtype=np.uint8
    )  # of the size it is resized to
    pixels = torch.from_numpy((image / 255 - mean) / std).permute(2, 0, 1).float()
    total, count = torch.zeros(4, side, side + 9), torch.zeros(side, side + 9)
    for left in (0, 9):
        assert left < stride
        (logits,) = session.run(None, {"images": pixels[None, :, :, left : left + side].numpy()})
        assert logits.shape == (1, 4, side // 8, side // 8)
        total[:, :, left : left + side] += F.interpolate(torch.from_numpy(logits), size=(side, side), mode="bilinear")[
            0
        ]
        count[:, left : left + side] += 1
    Image.fromarray(image).save(tmp_path / "image.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "image.png").rename(tmp_path / "images/image.png")
    assert cli.main(["predict", str(out), str(tmp_path / "images"), str(tmp_path / "p"), "--device", "cpu"]) == 0
    with Image.open(tmp_path / "p/masks/image.png.png") as mask:
        assert (np.asarray(mask) == (total / count).argmax(dim=0).numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "timm"], "--with-head writes ONNX"),
        (["--format", "onnx", "--remove-position", "x"], "not trained"),
        (["--format", "onnx"], "holds no head"),
    ],
)
def test_heads_that_cannot_be_exported(options, says, refused, tmp_path):  # noqa: F811
    refused(["export", tmp_path / "m", tmp_path / "o", "--with-head", *options], says, out=tmp_path / "o")
