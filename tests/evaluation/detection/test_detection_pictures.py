import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.datasets.coco import CocoDetection
from selfpatch.evaluation.detection.detection_pictures import (
    DetectedImage,
    Drawn,
    detected_objects,
    drawn,
    true_objects,
    write_detection_sheets,
)
from selfpatch.evaluation.segmentation.prediction_pictures import PANEL_WIDTH, class_color
from tests.evaluation.coco_scenes import compressed, write_coco

GRAY = np.full((60, 90, 3), 120, np.uint8)


def disk() -> np.ndarray:
    y, x = np.mgrid[:60, :90]
    return ((y - 30) ** 2 + (x - 40) ** 2 < 15**2).astype(np.uint8)


def test_objects_are_tinted_within_their_mask_and_framed_by_their_box():
    plain = np.asarray(drawn(GRAY, ()))
    assert plain.shape == (240, PANEL_WIDTH, 3) and (plain == 120).all()
    panel = np.asarray(drawn(GRAY, [Drawn(3, "bar 91%", (20.0, 10.0, 70.0, 50.0), disk())])).astype(int)
    red = np.array(class_color(3))
    assert panel[30 * 4, 40 * 4].tolist() == ((120 + red) / 2).round().tolist()
    assert panel[48 * 4, 65 * 4].tolist() == [120] * 3  # within the box, not within the mask
    assert (
        panel[30 * 4, 20 * 4].tolist()
        == panel[30 * 4, 70 * 4 - 1].tolist()
        == panel[50 * 4 - 1, 160].tolist()
        == red.tolist()
    )
    assert panel[55 * 4, 40 * 4].tolist() == [120] * 3
    assert (panel[10 * 4 - 15 : 10 * 4, 80:120] == red).all(axis=-1).any()  # the name's patch, above the box


@pytest.mark.parametrize("box", [(-5, -5, 8, 8), (80, 50, 95, 70), (0, 0, 0.1, 0.1)])
def test_boxes_at_and_beyond_the_border_are_drawn(box):
    drawn(GRAY, [Drawn(0, "a very long name of a class that fits nowhere 100%", tuple(map(float, box)), disk())])


def test_truth_names_crowds_and_detections_need_a_score(tmp_path):
    data = CocoDetection(write_coco(tmp_path / "data"))
    item = data.val[0]
    entry = {"image_id": item.id, "category_id": 44, "bbox": [1, 2, 30, 20]}
    mask = np.zeros(item.size, np.uint8)
    mask[2:22, 1:31] = 1
    results = [entry | {"score": score, "segmentation": compressed(mask)} for score in (0.9, 0.29, 0.4)]
    image = DetectedImage(item, item.read(), results)
    truth = true_objects(image, data.class_names)
    assert [thing.text for thing in truth] == [
        data.class_names[instance.label] + (" (crowd)" if instance.is_crowd else "") for instance in item.instances
    ]
    assert truth[-1].text == "box (crowd)" and all(thing.mask.shape == item.size for thing in truth)
    found = detected_objects(image, data.class_names, data.category_ids)
    assert [thing.text for thing in found] == ["bar 40%", "bar 90%"]
    assert found[0].box == (1, 2, 31, 22) and np.array_equal(found[0].mask, mask)


def test_a_sheet_holds_four_images(tmp_path):
    data = CocoDetection(write_coco(tmp_path / "data"))
    shown = [DetectedImage(item, item.read(), []) for item in [*data.val, data.train[0]]]
    paths = write_detection_sheets(shown, data.class_names, data.category_ids, tmp_path / "out")
    assert [path.name for path in paths] == ["detections_1.png", "detections_2.png"]
    with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
        assert first.width == second.width == 3 * PANEL_WIDTH + 48 and first.height > 3 * second.height
