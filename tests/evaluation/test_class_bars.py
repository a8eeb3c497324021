import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.class_bars import shortened, write_class_bars


@pytest.mark.parametrize("num_classes", [1, 2, 12, 150])
def test_every_class_has_a_bar(tmp_path, num_classes):
    ious = {f"IoU/class $ {i}_{'long ' * (i % 9)}": i / num_classes for i in range(num_classes)}
    path = write_class_bars({"mIoU": 0.4, "aAcc": 0.5, **ious}, tmp_path / "pictures")
    with Image.open(path) as picture:
        columns = -(-num_classes // 38)
        assert picture.width == round(4.6 * 120) * columns or picture.width == int(4.6 * 120 * columns)
        assert picture.height > 24 * (num_classes / columns)


def test_bars_are_as_long_as_their_numbers(tmp_path):
    path = write_class_bars({"mIoU": 0.5, "IoU/full": 1.0, "IoU/half": 0.5, "IoU/none": 0.0}, tmp_path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    bar, track = ((pixels == color).all(axis=-1).sum() for color in ((78, 121, 167), (238, 238, 238)))
    assert bar / (bar + track) == pytest.approx(0.5, abs=0.02)


def test_bars_of_another_score(tmp_path):
    metrics = {"box/AP": 0.5, "box/AP50": 1.0, "box/AP/full": 1.0, "box/AP/none": 0.0, "mask/AP/other": 1.0}
    path = write_class_bars(metrics, tmp_path, score="box/AP", mean="box/AP", file="class_box_ap.png")
    assert path.name == "class_box_ap.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    bar, track = ((pixels == color).all(axis=-1).sum() for color in ((78, 121, 167), (238, 238, 238)))
    assert bar / (bar + track) == pytest.approx(0.5, abs=0.02)


def test_long_names_are_cut():
    assert shortened("wall") == "wall"
    assert shortened("a" * 30) == "a" * 23 + "…"
