"""Nine channels of 16 bits from pretraining to every way out; and what is refused before work starts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.models import adapt_input_conv

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.cli import main
from selfpatch.commands.embed import embed
from selfpatch.commands.evaluate import evaluate
from selfpatch.commands.pretrain import pretrain
from selfpatch.commands.visualize import visualize
from selfpatch.config import PixelFormat
from selfpatch.config.io import read_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from tests.data.nine_channels import CLASSES, nine_channels, write_nine_channels
from tests.small_models import tiny_config

SETTINGS = {"optim.steps": 12, "optim.epochs": None, "efficiency.num_workers": 0, "evaluate.every_steps": 12}
PROTOCOL = InContextSegmentation(image_size=64, memory_size=2048, num_neighbors=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nine") / "data"
    write_nine_channels(root, num_unlabeled=16, num_train=6, num_val=4)
    return root


@pytest.fixture(scope="module")
def run(data) -> Path:
    out = data / "run"
    pretrain(data / "images", out, config=tiny_config(), settings=SETTINGS | {"evaluate.data": data / "labeled"})
    return out


def as_rgb(source: Path, target: Path) -> None:
    """The same images by their first three channels."""
    shutil.copytree(source, target)
    for path in target.rglob("*.tif"):
        tifffile.imwrite(path, np.moveaxis(tifffile.imread(path)[:3], 0, -1), photometric="rgb")


def test_settings_follow_from_the_images_with_reasons(data, tmp_path, capsys):
    pretrain(data / "images", tmp_path / "run", config=tiny_config(), settings=SETTINGS | {"optim.steps": 1})
    said = capsys.readouterr().out
    assert "backbone.num-channels 9: the images have 16-bit, 9 channels, by all 16 images" in said
    assert "images.bit-depth 16: as the images have" in said
    assert "images.value-range (0.0, 4095.0): no value above 4095, as of 12 bits, in 16 images" in said
    assert "of the pixels of 16 images" in said
    config = read_yaml(tmp_path / "run" / "config.yaml")
    pixels = np.stack([nine_channels(index)[0] for index in range(16)]) / 4095
    np.testing.assert_allclose(config.crops.mean, pixels.mean(axis=(0, 2, 3)), atol=2e-6)
    np.testing.assert_allclose(config.crops.std, pixels.std(axis=(0, 2, 3)), atol=2e-6)


def test_a_class_that_only_channel_7_shows_is_found(data, run, tmp_path):
    as_rgb(data, tmp_path / "rgb")
    pretrain(tmp_path / "rgb" / "images", tmp_path / "rgb_run", config=tiny_config(), settings=SETTINGS)
    found = {
        name: evaluate(model, data=root / "labeled", out=tmp_path / name, protocol=PROTOCOL).metrics
        for name, model, root in (("nine", run, data), ("rgb", tmp_path / "rgb_run", tmp_path / "rgb"))
    }
    seven, one = (f"IoU/{name}" for name in CLASSES[1:])
    assert found["nine"][seven] > 0.6
    assert found["rgb"][seven] < 0.2
    assert min(found["nine"][one], found["rgb"][one]) > 0.6  # which both see


def test_embeddings_are_those_of_the_values_at_full_depth(data, run, tmp_path):
    assert embed(run, data / "images", tmp_path / "out", level="patch", image_size=64, dtype="float32") == 16
    backbone = load_backbone(run)
    values = torch.from_numpy(nine_channels(3)[0].astype(np.float32) / 4095)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (backbone.mean, backbone.std))
    with torch.no_grad():
        tokens = backbone(((values - mean) / std)[None]).patch_tokens[0]
    written = np.load(tmp_path / "out" / "patches" / "003.tif.npy")
    np.testing.assert_allclose(written.reshape(64, -1), tokens.numpy(), atol=1e-4)


def test_the_exported_file_says_how_images_are_read_and_loads_in_timm(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "backbone.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["num_channels"]) == 9
    assert json.loads(metadata["pixels"])["value_range"] == [0, 4095]
    backbone = load_backbone(file)
    assert backbone.pixels == PixelFormat(9, "float32", (0.0, 4095.0))
    name, arguments = backbone.architecture
    assert arguments["in_chans"] == 9
    model = timm.create_model(name, **arguments, checkpoint_path=str(file)).eval()
    images = torch.randn(2, 9, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), backbone(images).patch_tokens)


@pytest.mark.parametrize("task", ["linear-segmentation", "overclustering", "semantic-fpn"])
def test_dense_tasks_read_the_same_images(data, run, tmp_path, task):
    small = {
        "linear-segmentation": "--steps 4 --warmup-steps 1 --image-size 64 --stride 32 --batch-size 2 --photometric-distortion",
        "overclustering": "--image-size 64 --num-seeds 1 --mask-size 16",
        "semantic-fpn": "--steps 2 --warmup-steps 1 --image-size 64 --stride 32 --batch-size 2 --fpn-channels 32 --head-channels 32",
    }[task]
    command = f"evaluate {run} --task {task} --preset quick --data {data / 'labeled'} --out {tmp_path / 'out'} {small}"
    assert main(command.split()) == 0
    with Image.open(next((tmp_path / "out" / "pictures").rglob("predictions_1.png"))) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_classification_reads_the_same_images(run, tmp_path):
    for split in ("train", "val"):
        for name, channel in (("one", 1), ("seven", 7)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = np.random.default_rng([index, channel, split == "val"]).integers(
                    900, 1100, (9, 40, 56), "uint16"
                )
                pixels[channel] += 1000
                tifffile.imwrite(tmp_path / "data" / split / name / f"{index}.tif", pixels)
    for task in ("knn-classification", "linear-classification"):
        small = "--steps 2 --batch-size 4 --lrs 0.1" if task == "linear-classification" else "--num-neighbors 3"
        command = f"evaluate {run} --task {task} --preset quick --data {tmp_path / 'data'} --out {tmp_path / task}"
        assert main([*command.split(), *small.split(), "--resize-size", "40", "--image-size", "32"]) == 0
    result = json.loads((tmp_path / "knn-classification" / "result.json").read_text())
    assert next(iter(result["metrics"].values())) == 1.0


def test_tasks_of_rgb_alone_say_so(data, run, tmp_path, capsys):
    for task in ("mask-rcnn", "video-segmentation"):
        assert main(["evaluate", str(run), "--task", task, "--data", str(data), "--out", str(tmp_path / "out")]) == 2
        assert f"{task} reads 8-bit RGB, and this model is made for 9 channels of full depth" in capsys.readouterr().err


def test_pictures_show_three_channels(data, run, tmp_path):
    paths = [
        visualize(run, data / "images", tmp_path / name, count=2, image_size=64, shown_channels=channels)[0]
        for name, channels in (("first", None), ("chosen", (7, 1, 0)))
    ]
    first, chosen = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in paths)
    red = (chosen[..., 0] > 150) & (chosen[..., 1] < 120) & (chosen[..., 2] < 200)
    assert np.abs(first - chosen).mean() > 1
    assert red.sum() > 100  # the disk of channel 7
    with pytest.raises(UserError, match=r"shown-channels are \(9, 0, 0\), and the model reads 9"):
        visualize(run, data / "images", tmp_path / "x", shown_channels=(9, 0, 0))


def test_a_run_goes_on_with_the_settings_that_it_found(data, tmp_path, capsys):
    def steps(count: int, **more) -> None:
        settings = SETTINGS | {"optim.steps": 6, "run.stop_at_step": count} | more
        pretrain(data / "images", tmp_path / "run", config=tiny_config(), settings=settings)

    steps(3)
    capsys.readouterr()
    steps(6)
    assert "images.value-range (0.0, 4095.0): as this run began" in capsys.readouterr().out
    with pytest.raises(UserError, match="images.bit_depth: 16 -> 8"):
        steps(6, **{"images.bit_depth": 8, "backbone.num_channels": 9})


def test_the_first_layer_is_adapted_from_rgb_weights(data, tmp_path, capsys):
    write_scenes(tmp_path / "scenes", num_unlabeled=4, num_train=1, num_val=1, size=48, seed=0)
    settings = SETTINGS | {"optim.steps": 1}
    pretrain(tmp_path / "scenes" / "images", tmp_path / "rgb", config=tiny_config(), settings=settings)
    capsys.readouterr()
    still = settings | {"optim.lr": 1e-12, "teacher.momentum": 1.0}
    pretrain(data / "images", tmp_path / "nine", config=tiny_config(), settings=still, init_from=tmp_path / "rgb")
    said = capsys.readouterr().out
    assert "first layer adapted from RGB to 9 channels by timm's rule" in said
    assert "crops.mean" in said  # of these images, not of the weights
    name = "patch_embed.proj.weight"
    rgb, nine = (load_backbone(tmp_path / out).model.state_dict()[name] for out in ("rgb", "nine"))
    torch.testing.assert_close(nine, adapt_input_conv(9, rgb))
    with pytest.raises(
        UserError, match="is made for images of 9 channels, and these have 3: only a first layer for RGB"
    ):
        pretrain(tmp_path / "scenes" / "images", tmp_path / "x", config=tiny_config(), settings=settings, init_from=tmp_path / "nine")  # fmt: skip


def test_timm_names_read_any_channels(data):
    backbone = load_backbone("timm:vit_tiny_patch16_224", num_channels=9)
    assert (backbone.num_channels, backbone.pixels, len(backbone.mean)) == (9, PixelFormat(9, "float32"), 9)
    with pytest.raises(UserError, match="mean .* cannot normalize images: 9 numbers each are needed"):
        load_backbone("timm:vit_tiny_patch16_224", num_channels=9, mean=(0.5,) * 3, std=(0.5,) * 3)


def one_paragraph(command: list[str], capsys) -> str:
    """The message of a command that is refused, with nothing written."""
    assert main(command) == 2
    said = capsys.readouterr().err.strip()
    assert "\n\n" not in said
    assert "Traceback" not in said
    return said


def test_bad_images_are_refused_in_one_paragraph(data, tmp_path, capsys):
    shutil.copytree(data / "images", tmp_path / "images")
    out = tmp_path / "out"
    command = ["pretrain", str(tmp_path / "images"), str(out), "--recipe", "demo"]
    assert "crops.mean is (0.5, 0.5); it must be 9 numbers" in one_paragraph(
        [*command, "--crops.mean", "0.5", "0.5"], capsys
    )
    tifffile.imwrite(tmp_path / "images" / "x.tif", np.zeros((9, 64, 64), np.uint8))
    said = one_paragraph(command, capsys)
    assert "the images differ in bit depth: 16 of 16 bits" in said
    assert "1 of 8 bits, x.tif for one" in said
    (tmp_path / "images" / "x.tif").unlink()
    tifffile.imwrite(tmp_path / "images" / "x.tif", np.zeros((5, 64, 64), np.uint16))
    said = one_paragraph(command, capsys)
    assert "the images differ in their number of channels: 16 of 9" in said
    assert "1 of 5 (x.tif)" in said
    (tmp_path / "list.csv").write_text("path\nimages/000.tif\nimages/gone.tif\n")
    assert "1 of the 2 files" in one_paragraph(["pretrain", str(tmp_path / "list.csv"), str(out)], capsys)
    (tmp_path / "list.csv").write_text("url\nimages/000.tif\n")
    assert "no column of paths" in one_paragraph(["pretrain", str(tmp_path / "list.csv"), str(out)], capsys)
    assert not out.exists()


def test_validation_images_among_those_to_train_on_are_refused(data, tmp_path, capsys):
    shutil.copytree(data / "images", tmp_path / "images")
    shutil.copy(data / "labeled" / "images" / "validation" / "001.tif", tmp_path / "images" / "other_name.tif")
    command = ["pretrain", str(tmp_path / "images"), str(tmp_path / "out"), "--recipe", "demo", "--evaluate.data"]
    said = one_paragraph([*command, str(data / "labeled")], capsys)
    assert "1 of 4 validation images" in said
    assert "other_name.tif" in said
    assert not (tmp_path / "out").exists()
    settings = SETTINGS | {"optim.steps": 1, "evaluate.data": data / "labeled"}
    for allowed in ({"evaluate.allow_overlap": True}, {"images.exclude": ("other*",)}):
        pretrain(tmp_path / "images", tmp_path / str(*allowed), config=tiny_config(), settings=settings | allowed)
