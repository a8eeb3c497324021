import numpy as np

from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.segmentation.prediction_pictures import (
    NOT_SCORED,
    PANEL_WIDTH,
    class_color,
    layout_legend,
    panels,
    pixel_accuracy,
    prediction_sheet,
    write_prediction_sheets,
)
from selfpatch.evaluation.segmentation.segmentation_scores import Prediction
from tests.evaluation.labeled_scenes import write_ade20k


def predictions_of(data: SegmentationData) -> list[Prediction]:
    return [Prediction(item, data.read_mask(item), np.zeros(item.size, np.uint8)) for item in data.val]


def test_colours_are_fixed_and_all_different():
    colors = [class_color(c) for c in range(255)]
    assert len({*colors, NOT_SCORED}) == 256
    distance = np.abs(np.subtract.outer(np.array(colors[:20]), np.array(colors[:20]))[:, range(3), :, range(3)]).sum(0)
    assert distance[~np.eye(20, dtype=bool)].min() > 60


def test_panels_show_image_truth_and_prediction(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path, size=(40, 90), cell=(10, 10)))
    prediction = predictions_of(data)[0]
    prediction.truth[:5] = IGNORED
    image, truth, predicted = (np.asarray(panel) for panel in panels(prediction, data))
    assert image.shape == truth.shape == predicted.shape == (160, PANEL_WIDTH, 3)
    assert tuple(truth[0, 0]) == NOT_SCORED
    assert tuple(truth[-1, -1]) == class_color(int(prediction.truth[-1, -1]))
    assert (predicted == class_color(0)).all()
    assert np.abs(image[-20, -20].astype(int) - data.read_image(prediction.item)[-5, -5]).max() < 3


def test_a_sheet_holds_four_images_and_a_legend_of_what_occurs(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path, num_val=5))
    paths = write_prediction_sheets(predictions_of(data), data, tmp_path / "out")
    assert [path.name for path in paths] == ["predictions_1.png", "predictions_2.png"]
    one = prediction_sheet(predictions_of(data)[:1], data)
    pixels = {tuple(pixel) for pixel in np.asarray(one)[-40:].reshape(-1, 3)}
    assert {class_color(c) for c in range(4)} <= pixels and NOT_SCORED not in pixels


def test_share_correct_leaves_out_what_is_not_scored(tmp_path):
    data = read_segmentation(write_ade20k(tmp_path))
    truth = np.array([[0, 1], [IGNORED, IGNORED]], np.uint8)
    assert pixel_accuracy(Prediction(data.val[0], truth, np.zeros((2, 2), np.uint8))) == "50% of pixels correct"
    truth[:] = IGNORED
    assert pixel_accuracy(Prediction(data.val[0], truth, truth)) == "no pixel is scored"


def test_the_legend_breaks_lines():
    assert [row for _, row in layout_legend([100, 100, 100], 300)] == [0, 0, 1]
    assert [row for _, row in layout_legend([1000], 300)] == [0]
