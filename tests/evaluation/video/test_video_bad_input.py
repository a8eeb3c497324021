"""What is wrong with videos: refused in a paragraph, exit code 2, nothing written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.backbones.small_vits import small_vit
from tests.evaluation.moving_shapes import save_annotation, write_davis
from tests.refusals import Refused

FRAME, ANNOTATION = "JPEGImages/480p/ball/00001.jpg", "Annotations/480p/ball/00001.png"
FIRST, LIST = "Annotations/480p/ball/00000.png", "ImageSets/2017/val.txt"
WHERE = r"DAVIS-2017 .* is at https://davischallenge\.org"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save(small_vit("class token").model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_davis(tmp_path_factory.mktemp("videos"), num_frames=4, size=(24, 36))


def labels_of(data: Path, name: str) -> np.ndarray:
    return np.array(Image.open(data / name))


def remove(name: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        path = data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda data: (data / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], None]:
    """The first half of a file."""

    def change(data: Path) -> None:
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[: len(content) // 2])

    return change


def resize(name: str) -> Callable[[Path], None]:
    return lambda data: Image.open(data / name).resize((30, 24), Image.Resampling.NEAREST).save(data / name)


def frames(count: int) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        for t in range(count, 4):
            remove(f"JPEGImages/480p/ball/{t:05d}.jpg")(data)
            remove(f"Annotations/480p/ball/{t:05d}.png")(data)

    return change


def in_colors(data: Path) -> None:
    Image.open(data / ANNOTATION).convert("RGB").save(data / ANNOTATION)


def objects_300(data: Path) -> None:
    labels = np.arange(24 * 36, dtype=np.uint16).reshape(24, 36) % 301
    Image.fromarray(labels).save(data / FIRST)


def no_object(data: Path) -> None:
    save_annotation(data / FIRST, labels_of(data, FIRST) * 0)


def as_davis_2016(data: Path) -> None:
    save_annotation(data / FIRST, (labels_of(data, FIRST) > 0).astype(np.uint8) * 255)


CASES = {
    "no folder": (shutil.rmtree, r"there is no folder .*data\. " + WHERE),
    "no frames at all": (remove("JPEGImages"), r"has no folder JPEGImages/480p \(it holds Annotations, ImageSets\)\. " + WHERE),
    "no annotations at all": (remove("Annotations"), r"has no folder Annotations/480p .*" + WHERE),
    "no list": (remove(LIST), r"there is no list of videos .*val.txt\. " + WHERE),
    "empty list": (write(LIST, b"\n \n"), r"val.txt lists no video; write the names of folders in .*480p into it"),
    "unknown video": (write(LIST, b"ball\ncar\n"), r"val.txt lists car, but there is no folder .*480p/car; add it"),
    "path in the list": (write(LIST, b"../ball\n"), r"lists '\.\./ball', which is a path; write the bare name"),
    "dots in the list": (write(LIST, b"..\n"), r"lists '\.\.', which is a path"),
    "video without annotations": (remove("Annotations/480p/ball"), r"lists ball, but there is no folder .*480p/ball"),
    "video without frames": (lambda data: [path.unlink() for path in data.rglob("ball/*.jpg")], "holds no frames"),
    "missing frame": (remove(FRAME), r"1 of 4 annotations in .*ball have no frame \(same name, .jpg\) .*: 00001; add"),
    "missing annotation": (remove(ANNOTATION), r"1 of 4 frames in .*ball have no annotation .*: 00001; .*add the anno"),
    "annotation of another size": (resize(ANNOTATION), r"00001.png is 30 x 24 pixels, and the first frame of ball 36 x 24; all"),
    "frame of another size": (resize(FRAME), r"00001.jpg is 30 x 24 pixels, and the first frame of ball 36 x 24; all"),
    "damaged frame": (cut(FRAME), r"the image .*00001.jpg cannot be read: .*; replace it"),
    "damaged annotation": (cut(ANNOTATION), r"the annotation .*00001.png cannot be read: .*; replace it"),
    "empty annotation": (write(ANNOTATION, b""), r"the annotation .*00001.png cannot be read: .*; replace it"),
    "annotation that is no picture": (write(ANNOTATION, b"x" * 999), r"the annotation .*00001.png cannot be read"),
    "annotation in colours": (in_colors, r"00001.png cannot be read: a color picture \(RGB\); .*save it as gray or palette PNG"),
    "300 objects": (objects_300, r"00000.png has an object 300; .*room for 254 objects \(255 is void\): number them anew"),
    "one frame": (frames(1), r"the video ball has 1 of the 3 frames that are needed at least: .*take ball out of"),
    "two frames": (frames(2), "the video ball has 2 of the 3 frames"),
    "no object in the first frame": (no_object, "00000.png, the first of ball, labels no object, so there is nothing to follow"),
    "DAVIS-2016": (as_davis_2016, r"labels no object \(255 means void here; DAVIS-2016 writes its one object so\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_videos(name, model, videos, tmp_path, capsys):
    change, says = CASES[name]
    data = Path(shutil.copytree(videos, tmp_path / "data"))
    change(data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("of an earlier run")
    arguments = ["evaluate", model, "--num-heads", 3, "--task", "video-segmentation", "--preset", "quick"]
    Refused(capsys)([*arguments, "--data", data, "--out", out, "--device", "cpu"], says, out=out)


def test_frames_that_come_out_smaller_than_a_patch(model, videos, tmp_path, capsys):
    arguments = ["evaluate", model, "--num-heads", 3, "--task", "video-segmentation", "--image-size", 40]
    says = r"image-size is 40 px, which makes the frames of ball 40 x 0 px .* less than one patch of 8 x 8; make image-size"
    out = tmp_path / "out"
    Refused(capsys)([*arguments, "--data", videos, "--out", out, "--device", "cpu"], says, out=out)
