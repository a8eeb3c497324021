import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from selfpatch.evaluation.datasets.coco_annotations import CocoImage, Instance
from selfpatch.evaluation.detection.detection_scores import coco_metrics, pasted_mask, result_entries
from selfpatch.evaluation.detection.detector import Detections
from tests.evaluation.coco_scenes import box_of, compressed, uncompressed
from tests.reference.plain_detection import pasted

CATEGORY_IDS, NAMES = [3, 7, 44, 90], ["disk", "box", "bar", "never"]
ORACLE_NUMBERS = ["AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large"]


def blob(rng: np.random.Generator, size: tuple[int, int], sides: tuple[int, int]) -> np.ndarray:
    """An ellipse with a bite."""
    rows, columns = size
    height, width = rng.integers(*sides, 2)
    top, left = rng.integers(0, max(rows - height, 1)), rng.integers(0, max(columns - width, 1))
    y, x = np.mgrid[:rows, :columns] + 0.5
    mask = ((y - top - height / 2) / height) ** 2 + ((x - left - width / 2) / width) ** 2 < 0.25
    mask[:, int(left + width * 0.7) : int(left + width * 0.8)] = False
    if not mask.any():
        mask[top, left] = True
    return mask.astype(np.uint8)


def random_data(seed: int) -> tuple[list[CocoImage], list[dict]]:
    """Objects of all sizes, crowds, images without annotations and without detections; detections near the truth."""
    rng = np.random.default_rng(seed)
    images, results = [], []
    for image_id in (2, 5, 11, 12, 40, 41):
        size = (int(rng.integers(120, 160)), int(rng.integers(120, 160)))
        instances = []
        for _ in range(0 if image_id == 11 else int(rng.integers(1, 7))):
            mask = blob(rng, size, [(3, 12), (30, 70), (110, 150)][rng.integers(3)])
            label, is_crowd = int(rng.integers(3)), bool(rng.random() < 0.25)
            segmentation = (uncompressed if rng.random() < 0.5 else compressed)(mask)
            instances.append(Instance(label, tuple(box_of(mask)), float(mask.sum()), is_crowd, segmentation))
            for _ in range(int(rng.integers(0, 4))):
                moved = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
                results.append((image_id, label if rng.random() < 0.8 else int(rng.integers(4)), moved))
        for _ in range(int(rng.integers(0, 3)) if image_id != 12 else 0):
            results.append((image_id, int(rng.integers(4)), blob(rng, size, (3, 40))))
        images.append(CocoImage(image_id, None, size, tuple(instances)))
    entries = [
        {
            "image_id": image_id,
            "category_id": CATEGORY_IDS[label],
            # Some scores are equal, and boxes are not exactly those of the masks.
            "bbox": [number + float(rng.normal(0, 0.3)) for number in box_of(mask)],
            "score": float(rng.integers(1, 12) / 12),
            "segmentation": compressed(mask),
        }
        for image_id, label, mask in results
    ]
    return images, entries


def oracle_metrics(images: list[CocoImage], results: list[dict], tmp_path) -> dict[str, float]:
    annotations = [
        {
            "id": 10 * i + 7, "image_id": image.id, "category_id": CATEGORY_IDS[instance.label],
            "bbox": list(instance.bbox), "area": instance.area, "iscrowd": int(instance.is_crowd),
            "segmentation": instance.segmentation,
        }
        for i, (image, instance) in enumerate((image, instance) for image in images for instance in image.instances)
    ]  # fmt: skip
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps(
            {
                "images": [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in images],
                "annotations": annotations,
                "categories": [{"id": id_, "name": name} for id_, name in zip(CATEGORY_IDS, NAMES, strict=True)],
            }
        )
    )
    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        for kind, iou_type, other in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
            entries = copy.deepcopy(results)
            for entry in entries:
                del entry[other]
            evaluation = COCOeval(truth, truth.loadRes(entries), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics |= {f"{kind}/{name}": evaluation.stats[i] for i, name in enumerate(ORACLE_NUMBERS)}
            for place, name in enumerate(NAMES):
                precision = evaluation.eval["precision"][:, :, place, 0, 2]
                metrics[f"{kind}/AP/{name}"] = precision[precision > -1].mean() if (precision > -1).any() else -1
    return metrics


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_pycocotools(seed, tmp_path):
    images, results = random_data(seed)
    expected = oracle_metrics(images, results, tmp_path)
    metrics = coco_metrics(images, results, CATEGORY_IDS, NAMES)
    assert metrics == pytest.approx({name: value for name, value in expected.items() if value != -1}, abs=1e-9)
    assert 0 < metrics["box/AP"] < 1 and 0 < metrics["mask/AP"] < 1
    assert next(iter(metrics)) == "box/AP"


def test_the_random_data_tell_sizes_crowds_and_kinds_apart(tmp_path):
    """Else the test above could not fail."""
    images, results = random_data(0)
    metrics = coco_metrics(images, results, CATEGORY_IDS, NAMES)
    assert len({round(metrics[f"{kind}/{name}"], 9) for kind in ("box", "mask") for name in ORACLE_NUMBERS}) >= 11
    alone = [i._replace(instances=tuple(x._replace(is_crowd=False) for x in i.instances)) for i in images]
    assert coco_metrics(alone, results, CATEGORY_IDS, NAMES)["box/AP"] != pytest.approx(metrics["box/AP"], abs=1e-6)
    assert "box/AP/never" not in metrics and "mask/AP/disk" in metrics


def test_perfect_none_and_absent(tmp_path):
    images, _ = random_data(3)
    images = [i._replace(instances=tuple(x for x in i.instances if not x.is_crowd and x.area >= 97**2)) for i in images]
    perfect = [
        {
            "image_id": image.id, "category_id": CATEGORY_IDS[instance.label], "bbox": list(instance.bbox), "score": 0.9,
            "segmentation": compressed(mask),
        }
        for image in images
        for instance, mask in zip(image.instances, image.masks(), strict=True)
    ]  # fmt: skip
    metrics = coco_metrics(images, perfect, CATEGORY_IDS, NAMES)
    assert metrics["box/AP"] == metrics["mask/AP75"] == metrics["box/AP-large"] == pytest.approx(1)
    assert not {"box/AP-small", "mask/AP-small", "box/AP-medium"} & metrics.keys()
    nothing = coco_metrics(images, [], CATEGORY_IDS, NAMES)
    assert nothing.keys() == metrics.keys() and set(nothing.values()) == {0.0}


@pytest.mark.parametrize(
    "box", [[3.2, 4.1, 14.9, 11.3], [-4.0, 2.0, 9.5, 30.0], [10.0, 8.0, 10.6, 8.5], [0, 0, 20, 16]]
)
def test_masks_are_pasted_as_a_loop_over_pixels_does(box):
    torch.manual_seed(0)
    grid = torch.rand(7, 7)
    expected = pasted(grid.numpy(), box, (16, 20))
    assert np.abs(pasted_mask(grid, torch.tensor(box, dtype=torch.float32), (16, 20)) - expected).max() < 1e-4


def test_masks_outside_of_the_image_are_empty():
    for box in ([30, 2, 40, 9], [-9, -9, -5, -5], [3, 3, 3, 8]):
        assert pasted_mask(torch.ones(7, 7), torch.tensor(box, dtype=torch.float32), (16, 20)).max() == 0


def test_detections_are_told_in_pixels_of_the_image_itself():
    """Seen at 50 x 30, the image is 100 rows x 90 columns."""
    item = CocoImage(12, None, (100, 90), ())
    found = Detections(
        torch.tensor([[10.0, 20, 20, 40]]), torch.tensor([0.5]), torch.tensor([2]), torch.full((1, 28, 28), 0.9)
    )
    (entry,) = result_entries(item, found, (50, 30), CATEGORY_IDS)
    assert (entry["image_id"], entry["category_id"], entry["score"]) == (12, 44, 0.5)
    assert entry["bbox"] == [30, 40, 30, 40]
    mask = oracle_mask.decode(entry["segmentation"])
    assert mask.shape == (100, 90) and box_of(mask) == [30, 40, 30, 40] and mask.sum() > 1190
    assert json.loads(json.dumps(entry)) == entry
