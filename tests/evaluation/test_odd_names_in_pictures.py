"""Pictures of every task draw names of files and classes that no terminal should print."""

import json
import os

import numpy as np
import pytest

from selfpatch.evaluation.classification.classification_pictures import Answer, Neighbor, draw_answers, draw_confusion
from selfpatch.evaluation.datasets.davis import Davis, read_annotation
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation.prediction_pictures import write_prediction_sheets
from selfpatch.evaluation.segmentation.segmentation_scores import Prediction
from selfpatch.evaluation.video.video_pictures import video_sheet
from selfpatch.output.printable import printable
from tests.evaluation.datasets.segmentation_layouts import write_plain
from tests.evaluation.moving_shapes import write_davis

ODD = [b"two\nlines", b"\xff", b"\x1b[31m"]


@pytest.mark.parametrize("odd", ODD)
def test_segmentation(tmp_path, odd):
    root = write_plain(tmp_path)
    for folder, ending in (("images", b".jpg"), ("masks", b".png")):
        for path in (root / folder).iterdir():
            os.rename(path, os.fsencode(path.with_suffix("")) + odd + ending)
    (root / "classes.txt").write_text("a\tb\nnull \0\nc\x1b\n")
    data = read_segmentation(root)
    assert data.class_names == [r"a\tb", r"null \x00", r"c\x1b"]
    mask = data.read_mask(data.val[0])
    assert write_prediction_sheets([Prediction(data.val[0], mask, mask)], data, tmp_path / "out")


@pytest.mark.parametrize("odd", ODD[:1] + ODD[2:])
def test_video(tmp_path, odd):
    root = write_davis(tmp_path, videos=("ball",), size=(20, 30))
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.rename(path.with_name(f"{path.stem}{odd.decode()}{path.suffix}"))
    (video,) = Davis(root).videos
    masks = [read_annotation(frame) for frame in video.frames]
    assert video_sheet(video, masks).width > 60


def test_classes(tmp_path):
    names = [printable(os.fsdecode(name)) for name in ODD]
    draw_confusion(np.eye(3, dtype=np.int64), names, tmp_path / "confusion.png")
    pixels = np.zeros((8, 8, 3), np.uint8)
    draw_answers([Answer(pixels, names[0], names[1], [Neighbor(pixels, names[2], 0.5)])], tmp_path / "answers.png")


def test_result_json_keeps_a_path_that_is_no_utf8(tmp_path):
    model = os.fsdecode(b"runs/\xff\xe9")
    Result("task", {"name": "x"}, {"mIoU": 0.5}, model, f"{model}/é", 1.0, {}).write(tmp_path / "result.json")

    read = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (read["model"], read["data"]) == (model, f"{model}/é")
