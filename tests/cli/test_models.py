"""Models and checkpoints that cannot be read or do not fit, and labeled images that are not complete."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from selfpatch import cli


def test_resume_from_another_backbone(pretrain_refused, finished_run):
    newest = finished_run / "checkpoints" / "step-00000001"
    says = ("step-00000001", "backbone.embed_dim: 32 -> 48")
    shown = pretrain_refused("--backbone.embed-dim", 48, "--resume", newest, says=says)
    assert len(shown) < 1000


def test_resume_from_no_checkpoint(pretrain_refused, finished_run, tmp_path):
    pretrain_refused("--resume", finished_run, says=(finished_run, "RUN/checkpoints/step-"))
    pretrain_refused("--resume", tmp_path / "nope", says=(tmp_path / "nope", "RUN/checkpoints/step-"))


def test_init_from_another_backbone(pretrain_refused, finished_run):
    pretrain_refused(
        "--backbone.embed-dim", 48, "--init-from", finished_run, says=(finished_run, "32", "48", "--backbone.embed-dim")
    )
    pretrain_refused(
        "--backbone.num-heads",
        4,
        "--init-from",
        finished_run,
        says=("attention heads", "2", "4", "--backbone.num-heads"),
    )
    pretrain_refused("--init-from", finished_run / "nope", says=(finished_run / "nope", "run folder"))


def test_weights_that_lack_tensors(refused, finished_run, tmp_path):
    """A checkpoint with the layout of DINO in which a block lacks its attention."""
    weights = {
        name: tensor for name, tensor in load_file(finished_run / "backbone.safetensors").items() if "attn" not in name
    }
    torch.save(weights, tmp_path / "half.pth")
    out = tmp_path / "exported"
    refused(["export", tmp_path / "half.pth", out, "--num-heads", 2], "half.pth", "attn", "missing", out=out)


def test_network_and_normalization(refused, scenes, finished_run, tmp_path):
    weights = load_file(finished_run / "backbone.safetensors")
    torch.save({"first": weights, "second": weights}, tmp_path / "two.pth")
    out = tmp_path / "out"
    for command in commands_with_a_model(tmp_path / "two.pth", scenes, out):
        refused([*command, "--num-heads", 2], "first, second", "--network", out=out)
        refused([*command, "--num-heads", 2, "--network", "third"], "third", "first, second", out=out)
        # In-context segmentation has settings of its own by these names.
        task = ["--task", "knn-classification"] if command[0] == "evaluate" else []
        refused([*command, *task, "--num-heads", 2, "--mean", 0.5, 0.5, 0.5], "--std", out=out)
        refused([*command, *task, "--mean", 0, 0, 0, "--std", 1, 1, 0], "above 0", out=out)
    options = ["--num-heads", "2", "--network", "second", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.5", "0.5"]
    assert cli.main(["export", str(tmp_path / "two.pth"), str(out), *options]) == 0
    with safe_open(out / "backbone.safetensors", "pt") as content:
        metadata = content.metadata()
    assert (metadata["mean"], metadata["std"]) == ("[0.5, 0.5, 0.5]", "[0.25, 0.5, 0.5]")


def commands_with_a_model(model: Path | str, scenes: Path, out: Path) -> list[list]:
    return [
        ["evaluate", model, "--data", scenes / "ade20k", "--out", out],
        ["visualize", model, scenes / "images", out],
        ["embed", model, scenes / "images", out],
        ["export", model, out],
    ]


def test_model_missing_with_nearest_siblings(refused, scenes, a_run, tmp_path):
    for command in commands_with_a_model(tmp_path / "runn", scenes, tmp_path / "out"):
        refused(command, tmp_path / "runn", "Nearest there: run", out=tmp_path / "out")


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors", "other.pth", "."])
def test_model_that_is_none(name, refused, scenes, tmp_path):
    (tmp_path / "notes.pth").write_text("no checkpoint")
    (tmp_path / "notes.safetensors").write_text("no checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    refused(commands_with_a_model(tmp_path / name, scenes, tmp_path / "out")[0], tmp_path / name, out=tmp_path / "out")


def test_model_of_timm_that_is_none(refused, tmp_path):
    out = tmp_path / "out"
    refused(["export", "timm:vit_smal_patch16_224", out], "vit_smal_", "vit_small_patch16_224", out=out)


def test_number_of_heads_of_an_unusual_width(refused, scenes, finished_run, tmp_path):
    torch.save(load_file(finished_run / "backbone.safetensors"), tmp_path / "unusual.pth")
    out = tmp_path / "out"
    for command in commands_with_a_model(tmp_path / "unusual.pth", scenes, out):
        refused(command, "32 wide", "num-heads", out=out)
    assert cli.main(["export", str(tmp_path / "unusual.pth"), str(out), "--num-heads", "2"]) == 0
    for command in commands_with_a_model(out, scenes, tmp_path / "again"):
        refused([*command, "--num-heads", 4], "2 attention heads, not 4", out=tmp_path / "again")


# Labeled images


def remove(kind: str):
    def change(data: Path) -> None:
        next((data / kind / "training").iterdir()).unlink()

    return change


def resize_mask(data: Path) -> None:
    path = next((data / "annotations" / "training").iterdir())
    Image.open(path).resize((10, 12), Image.Resampling.NEAREST).save(path)


def label_beyond_the_classes(data: Path) -> None:
    path = next((data / "annotations" / "training").iterdir())
    mask = np.array(Image.open(path))
    mask[0, 0] = 8
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove("images"), ["1 of 3 masks", "add the images"]),
        (remove("annotations"), ["1 of 3 images", "add the masks"]),
        (resize_mask, ["1 of 5 masks", "scene_", "10 x 12"]),
        (label_beyond_the_classes, ["classes.txt", "8", "7 classes", "0 to 7"]),
        (lambda data: shutil.rmtree(data / "annotations"), ["classes.txt, images"]),
        (shutil.rmtree, ["data"]),
    ],
    ids=["no image", "no mask", "size", "label", "no masks", "no folder"],
)
def test_labeled_images(change, says, pretrain_refused, refused, scenes, finished_run, tmp_path):
    data = Path(shutil.copytree(scenes / "ade20k", tmp_path / "data"))
    change(data)
    pretrain_refused("--evaluate.data", data, says=says)
    out = tmp_path / "scores"
    refused(["evaluate", finished_run, "--data", data, "--out", out, "--device", "cpu"], *says, out=out)
