import numpy as np
import pytest
import torch

from selfpatch.evaluation.datasets.coco import CocoDetection
from selfpatch.evaluation.detection.detection_samples import (
    Sample,
    augment,
    collate,
    crop,
    hflip,
    keep_ratio_size,
    read_sample,
    resize,
    to_targets,
)
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN
from tests.evaluation.coco_scenes import write_coco
from tests.reference.plain_detection import box_of, nearest


def rectangles(rng: np.random.Generator, size: tuple[int, int], count: int) -> Sample:
    """Colours tell which object a pixel is of, so that image and masks can be compared."""
    image = np.zeros((*size, 3), np.uint8)
    masks = np.zeros((count, *size), np.uint8)
    boxes = []
    for i in range(count):
        top, left = (int(rng.integers(side - 12)) for side in size)
        bottom, right = (int(rng.integers(start + 8, side + 1)) for start, side in zip((top, left), size, strict=True))
        masks[i, top:bottom, left:right] = 1
        boxes.append([left, top, right, bottom])
        image[masks[i] == 1] = 0
        image[..., i % 3][masks[i] == 1] = 255
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(count), masks)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_masks_through_flip_resize_and_crop(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(30, 60)), int(rng.integers(30, 60)))
    sample = rectangles(rng, size, 4)
    mirrored = hflip(sample)
    assert np.array_equal(mirrored.image, sample.image[:, ::-1]) and np.array_equal(
        mirrored.masks, sample.masks[..., ::-1]
    )
    assert mirrored.boxes.tolist() == [box_of(mask) for mask in mirrored.masks]

    new_size = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    scaled = resize(mirrored, new_size)
    assert scaled.size == new_size
    assert np.array_equal(scaled.masks, [nearest(mask, new_size) for mask in mirrored.masks])
    # A box ends where its object does, to within the half pixel that a mask of whole pixels is off.
    assert np.abs(scaled.boxes - [box_of(mask) for mask in scaled.masks]).max() <= 0.5 + 1e-4

    top, left = (int(rng.integers(side // 2)) for side in size)
    part = crop(sample, top, left, (24, 17))
    rows, columns = part.size
    expected = sample.masks[:, top : top + rows, left : left + columns]
    visible = [i for i in range(4) if expected[i].any()]
    assert np.array_equal(part.image, sample.image[top : top + 24, left : left + 17])
    assert part.labels.tolist() == visible
    assert np.array_equal(part.masks, expected[visible])
    assert part.boxes.tolist() == [box_of(mask) for mask in expected[visible]]


@pytest.mark.parametrize("augmentation", ["multi_scale", "large_scale_jitter", "none"])
def test_variants_keep_image_boxes_and_masks_together(augmentation):
    protocol = MaskRCNN(
        augmentation=augmentation,
        short_sides=(40, 48, 56),
        crop_short_sides=(30, 44),
        crop_sides=(20, 40),
        image_size=48,
        long_side=64,
        jitter=(0.5, 2.0),
    )
    sample = rectangles(np.random.default_rng(0), (50, 70), 3)
    sizes, mirrored = set(), 0
    for seed in range(40):
        variant = augment(sample, np.random.default_rng(seed), protocol)
        again = augment(sample, np.random.default_rng(seed), protocol)
        assert all(np.array_equal(a, b) for a, b in zip(variant, again, strict=True))
        assert variant.masks.shape == (len(variant.boxes), *variant.size) and len(variant.labels) == len(variant.boxes)
        assert (variant.boxes[:, :2] >= 0).all()
        assert (variant.boxes[:, 2:] <= np.array(variant.size[::-1]) + 1e-3).all()
        for box, mask in zip(variant.boxes, variant.masks, strict=True):
            if mask.any():
                assert np.abs(box - box_of(mask)).max() <= 2  # resized twice, by up to three
        if len(variant.masks) == 3:  # the last one is on top; its border is blurred
            inside = variant.image[variant.masks[2] == 1]
            assert inside[:, 2].mean() > 150
        sizes.add(variant.size)
        mirrored += len(variant.boxes) == 3 and abs(variant.boxes[0, 0] - sample.boxes[0, 0] * variant.size[1] / 70) > 2
    assert min(min(size) for size in sizes) >= (1 if augmentation == "large_scale_jitter" else 40 * 64 // 140)
    assert max(max(size) for size in sizes) <= 64
    assert (len(sizes) == 1) == (augmentation == "none")
    if augmentation == "none":
        assert sizes == {(46, 64)} and 10 < mirrored < 30


def test_half_of_the_images_are_cropped_and_half_mirrored():
    sample = rectangles(np.random.default_rng(1), (100, 100), 1)
    protocol = MaskRCNN(short_sides=(100,), crop_short_sides=(100,), crop_sides=(50, 50))
    sizes = [augment(sample, np.random.default_rng(seed), protocol) for seed in range(100)]
    whole = [np.array_equal(v.image, sample.image) or np.array_equal(v.image, sample.image[:, ::-1]) for v in sizes]
    assert 35 < sum(whole) < 65


def test_official_sizes():
    assert keep_ratio_size((480, 640), 800, 1333) == (800, 1067)
    assert keep_ratio_size((427, 640), 800, 1333) == (800, 1199)
    assert keep_ratio_size((300, 640), 800, 1333) == (625, 1333)
    assert keep_ratio_size((640, 300), 800, 1333) == (1333, 625)
    protocol = MaskRCNN()
    sample = rectangles(np.random.default_rng(0), (427, 640), 1)
    for seed in range(12):
        rows, columns = augment(sample, np.random.default_rng(seed), protocol).size
        assert min(rows, columns) in range(480, 801, 32) or max(rows, columns) == 1333
        assert max(rows, columns) <= 1333


def test_a_crop_may_show_nothing():
    sample = rectangles(np.random.default_rng(0), (40, 40), 1)
    sample.masks[:] = 0
    part = crop(sample._replace(boxes=np.array([[30, 30, 40, 40]], np.float32)), 0, 0, (20, 20))
    assert part.boxes.shape == (0, 4) and part.masks.shape == (0, 20, 20) and part.labels.shape == (0,)
    assert resize(part, (30, 40)).masks.shape == (0, 30, 40)


def triangle_and_square() -> Sample:
    """A right triangle of 20 px legs, whose row r ends at 20 - r; and a square that ends between pixels."""
    masks = np.zeros((2, 30, 40), np.uint8)
    for row in range(20):
        masks[0, row, : 20 - row] = 1
    masks[1, 4:8, 22:26] = 1
    boxes = np.array([[0, 0, 20, 20], [22.25, 4.5, 25.75, 7.5]], np.float32)
    return Sample(np.zeros((30, 40, 3), np.uint8), boxes, np.array([0, 1]), masks)


def test_boxes_of_what_a_crop_leaves_of_a_mask():
    """From column 10 on the triangle is 10 px high and wide; clipped, its box would be 20 px high. The square is whole."""
    sample = triangle_and_square()
    part = crop(sample, 0, 10, (30, 30), recompute_boxes=True)
    assert part.boxes.tolist() == [[0, 0, 10, 10], [12.25, 4.5, 15.75, 7.5]]
    assert crop(sample, 0, 10, (30, 30)).boxes.tolist()[0] == [0, 0, 10, 20]
    # From row 12 and column 12 on nothing is left of the triangle, though its box reaches there.
    part = crop(sample, 12, 12, (18, 28), recompute_boxes=True)
    assert part.labels.tolist() == [] and part.boxes.shape == (0, 4) and part.masks.shape == (0, 18, 28)
    assert crop(sample, 12, 12, (18, 28)).labels.tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_large_scale_jitter_recomputes_boxes(seed):
    protocol = MaskRCNN(
        augmentation="large_scale_jitter", jitter=(1.0, 2.0), image_size=40, long_side=40, recompute_boxes=True
    )
    part = augment(triangle_and_square(), np.random.default_rng(seed), protocol)
    for box, mask in zip(part.boxes, part.masks, strict=True):
        assert mask.any() and np.abs(box - box_of(mask)).max() <= 1.5  # the square ends between pixels


def test_samples_of_a_data_set_leave_crowds_out(tmp_path):
    data = CocoDetection(write_coco(tmp_path / "data"))
    crowded = data.val[0]
    sample = read_sample(crowded)
    kept = [instance for instance in crowded.instances if not instance.is_crowd]
    assert len(kept) == len(crowded.instances) - 1
    assert sample.labels.tolist() == [instance.label for instance in kept]
    assert np.array_equal(sample.masks, crowded.masks(kept))
    targets = to_targets(sample, torch.device("cpu"))
    assert targets.labels.dtype == torch.int64 and targets.boxes.tolist() == sample.boxes.tolist()


def test_batches_are_filled_up_with_the_mean_colour():
    images = [np.full((30, 50, 3), 255, np.uint8), np.zeros((40, 20, 3), np.uint8)]
    batch = collate(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), size_divisor=32, device=torch.device("cpu"))
    assert batch.shape == (2, 3, 64, 64)
    assert (batch[0, :, :30, :50] == 1).all() and (batch[1, :, :40, :20] == -1).all()
    assert batch[0, :, 30:].abs().max() == batch[0, :, :, 50:].abs().max() == batch[1, :, 40:].abs().max() == 0


def test_batches_are_padded_to_a_square():
    images = [np.full((30, 50, 3), 255, np.uint8)]
    arguments = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "device": torch.device("cpu")}
    batch = collate(images, size_divisor=32, square_pad=128, **arguments)
    assert batch.shape == (1, 3, 128, 128) and (batch[0, :, :30, :50] == 1).all() and batch.sum() == 3 * 30 * 50
    assert collate(images, size_divisor=28, square_pad=128, **arguments).shape == (1, 3, 140, 140)


def test_boxes_beyond_the_image_are_cut_off(tmp_path):
    data = CocoDetection(write_coco(tmp_path / "data"))
    item = data.train[0]
    far = item.instances[0]._replace(bbox=(40.0, 30.0, 24.8, 18.9))
    sample = read_sample(item._replace(instances=(far,)))
    assert sample.boxes.tolist() == [[40, 30, 64, 48]]
