"""What `selfpatch embed` writes is what the model makes of each image alone, in the order of its list."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.backbones.vit import ViT
from selfpatch.cli import main
from selfpatch.commands.embed import bounded_size
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.data.reading.decode import read_image
from selfpatch.export import export_timm

SIZES = {"a.png": (40, 40), "b.png": (32, 70), "deep/c.png": (64, 33), "d.png": (40, 40)}  # rows, columns
AT_20_PX = {"a.png": (16, 16), "b.png": (16, 40), "deep/c.png": (32, 16), "d.png": (16, 16)}  # patches of 8


@pytest.fixture
def images(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "broken.png").write_text("no picture")
    return tmp_path / "images"


def model(folder: Path, *, class_token: bool) -> ViT:
    torch.manual_seed(0)
    settings = BackboneConfig("vit_tiny_patch16_224", 8, 32, 2, 2, class_token=class_token)
    export_timm(build_backbone(settings, (24, 24), mean=IMAGENET_MEAN, std=IMAGENET_STD), folder / "model.safetensors")
    return load_backbone(folder / "model.safetensors")


def tokens(backbone: ViT, path: Path, size: tuple[int, int]):
    """One image, resized, normalised and encoded by hand."""
    resized = Image.fromarray(read_image(path)).resize(size[::-1], Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (backbone.mean, backbone.std))
    with torch.no_grad():
        return backbone(((x - mean) / std)[None])


@pytest.mark.parametrize("class_token", [True, False])
def test_one_vector_an_image(class_token, images, tmp_path, capsys):
    backbone = model(tmp_path, class_token=class_token)
    out = tmp_path / "vectors"
    arguments = [str(tmp_path / "model.safetensors"), str(images), str(out), "--image-size", "20", "--device", "cpu"]
    assert main(["embed", *arguments, "--dtype", "float32"]) == 0
    names = (out / "files.txt").read_text().splitlines()
    assert names == ["a.png", "b.png", "d.png", "deep/c.png"]
    vectors = np.load(out / "embeddings.npy")
    assert vectors.shape == (4, 32)
    assert vectors.dtype == np.float32
    for name, vector in zip(names, vectors, strict=True):
        expected = tokens(backbone, images / name, AT_20_PX[name])
        wanted = expected.cls_token[0] if class_token else expected.patch_tokens[0].mean(dim=0)
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-5)
    described = json.loads((out / "embeddings.json").read_text())
    assert described["vector"] == ("class token" if class_token else "mean of patch tokens")
    assert (described["num_images"], described["dim"], described["image_size"]) == (4, 32, 20)
    assert (out / "unreadable.txt").read_text() == "broken.png\tnot a JPEG, PNG, WebP, TIFF, BMP, GIF or NumPy file\n"
    assert "1 of 5 images cannot be read" in capsys.readouterr().out
    assert not (out / "patches").exists()


def test_one_vector_a_patch(images, tmp_path):
    backbone = model(tmp_path, class_token=True)
    out = tmp_path / "vectors"
    arguments = [str(tmp_path / "model.safetensors"), str(images), str(out), "--image-size", "20", "--device", "cpu"]
    assert main(["embed", *arguments, "--level", "patch"]) == 0
    for name in (out / "files.txt").read_text().splitlines():
        patches = np.load(out / "patches" / f"{name}.npy")
        rows, columns = AT_20_PX[name]
        assert patches.shape == (rows // 8, columns // 8, 32)
        assert patches.dtype == np.float16
        expected = tokens(backbone, images / name, AT_20_PX[name])
        np.testing.assert_allclose(patches.reshape(-1, 32), expected.patch_tokens[0].numpy(), atol=5e-3)
    assert json.loads((out / "embeddings.json").read_text())["vector"] == "patch token"
    assert not (out / "embeddings.npy").exists()


def test_image_size_defaults_to_what_the_model_was_built_for(images, tmp_path):
    model(tmp_path, class_token=True)
    main(["embed", str(tmp_path / "model.safetensors"), str(images), str(tmp_path / "out"), "--level", "patch"])
    assert np.load(tmp_path / "out" / "patches" / "a.png.npy").shape == (3, 3, 32)


def test_image_size_below_a_patch(images, tmp_path, capsys):
    model(tmp_path, class_token=True)
    code = main(["embed", str(tmp_path / "model.safetensors"), str(images), str(tmp_path / "out"), "--image-size", "7"])
    assert code == 2
    assert "image-size is 7 px, less than one patch of 8 x 8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image_size", "size", "patch_size", "expected"),
    [((1, 400), 48, (48, 48), (48, 384)), ((400, 1), 48, (48, 48), (384, 48)), ((10, 80), 20, (8, 8), (16, 160)),
     ((10, 81), 20, (8, 8), (16, 160)), ((1, 10_000), 224, (16, 16), (16, 1792)), ((3, 100), 32, (16, 8), (16, 256))],
)  # fmt: skip
def test_sizes_of_extreme_shapes_are_bounded(image_size, size, patch_size, expected):
    assert bounded_size(image_size, size, patch_size) == expected


def test_a_line_of_pixels(images, tmp_path, capsys):
    Image.new("RGB", (400, 1), "red").save(images / "line.png")
    model(tmp_path, class_token=True)
    arguments = [str(tmp_path / "model.safetensors"), str(images), str(tmp_path / "out"), "--image-size", "20"]
    assert main(["embed", *arguments, "--level", "patch", "--device", "cpu"]) == 0
    assert np.load(tmp_path / "out/patches/line.png.npy").shape == (1, 20, 32)
    described = json.loads((tmp_path / "out/embeddings.json").read_text())
    assert (described["max_aspect"], described["num_bounded_images"]) == (8, 1)
    assert "1 images are more than 8 times as long as wide" in capsys.readouterr().out


@pytest.mark.parametrize("level", ["image", "patch"])
def test_names_that_are_no_lines_of_text(images, tmp_path, level):
    """One line per row, and NAME of patches/NAME.npy as it is written there; the folder's name is no UTF-8 either."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/images \xff"))
    images.rename(folder)
    for name in (b"two\nlines.png", b"\xfe.png", b"\x1b[31m.png"):
        Image.new("RGB", (20, 20), "red").save(folder / os.fsdecode(name))
    model(tmp_path, class_token=True)
    out = tmp_path / "out"
    arguments = [str(tmp_path / "model.safetensors"), str(folder), str(out), "--image-size", "16", "--device", "cpu"]
    assert main(["embed", *arguments, "--level", level]) == 0
    names = (out / "files.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(SIZES) + 3 and {r"two\nlines.png", r"\xfe.png", r"\x1b[31m.png"} < set(names)
    if level == "image":
        assert len(np.load(out / "embeddings.npy")) == len(names)
    else:
        assert all((out / "patches" / f"{name}.npy").is_file() for name in names)
    assert json.loads((out / "embeddings.json").read_text(encoding="utf-8"))["images"] == str(folder)
