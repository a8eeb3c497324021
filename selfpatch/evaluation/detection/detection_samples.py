"""Images with boxes and masks for a detector: augmentation in training, and batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from selfpatch.evaluation.datasets.coco import targets
from selfpatch.evaluation.datasets.coco_annotations import CocoImage
from selfpatch.evaluation.detection.detector import Size, Targets
from selfpatch.evaluation.features import keep_ratio_size, normalized, resize_image, resize_mask
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN


class Sample(NamedTuple):
    """An image and its instances: boxes as left, top, right, bottom in its pixels, labels 0 to C - 1."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float32[np.ndarray, "P 4"]
    labels: Int64[np.ndarray, "P"]
    masks: UInt8[np.ndarray, "P H W"]

    @property
    def size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]


def read_sample(item: CocoImage) -> Sample:
    """The image as stored, without crowds; boxes are clipped to the image."""
    learned = targets(item)
    labels = np.array([instance.label for instance in learned], np.int64)
    return Sample(item.read(), clip_boxes(item.boxes(learned), item.size), labels, item.masks(learned))


def augment(sample: Sample, rng: np.random.Generator, protocol: MaskRCNN) -> Sample:
    """A random variant by the protocol's augmentation.

    Source: mmdetection's pipeline of Swin and XCiT ("multi_scale"); detectron2's for ViTDet ("large_scale_jitter").
    """
    if rng.random() < protocol.hflip_prob:
        sample = hflip(sample)
    if protocol.augmentation == "none":
        return resize(sample, keep_ratio_size(sample.size, protocol.image_size, protocol.long_side))
    if protocol.augmentation == "large_scale_jitter":
        # The factor is on the square that the image is fitted into, of which it then sees a part.
        side = int(protocol.image_size * rng.uniform(*protocol.jitter))
        sample = resize(sample, keep_ratio_size(sample.size, side, side))
        square = (protocol.image_size, protocol.image_size)
        return random_crop(sample, square, rng, recompute_boxes=protocol.recompute_boxes)
    if rng.random() < 0.5:
        sample = resize(
            sample, keep_ratio_size(sample.size, int(rng.choice(protocol.crop_short_sides)), protocol.long_side)
        )
        low, high = protocol.crop_sides
        rows, columns = (int(rng.integers(min(side, low), min(side, high) + 1)) for side in sample.size)
        sample = random_crop(sample, (rows, columns), rng)
    return resize(sample, keep_ratio_size(sample.size, int(rng.choice(protocol.short_sides)), protocol.long_side))


def hflip(sample: Sample) -> Sample:
    """Flip left and right."""
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = sample.size[1] - sample.boxes[:, [2, 0]]
    image, masks = (np.ascontiguousarray(array) for array in (sample.image[:, ::-1], sample.masks[:, :, ::-1]))
    return Sample(image, boxes, sample.labels, masks)


def resize(sample: Sample, size: Size) -> Sample:
    """Resize to (rows, columns); masks by the nearest pixel, so that they stay binary."""
    if size == sample.size:
        return sample
    rows, columns = (new / old for new, old in zip(size, sample.size, strict=True))
    masks = [resize_mask(mask, size) for mask in sample.masks]
    return Sample(
        resize_image(sample.image, size),
        sample.boxes * np.array([columns, rows, columns, rows], np.float32),
        sample.labels,
        np.stack(masks) if masks else np.zeros((0, *size), np.uint8),
    )


def random_crop(sample: Sample, size: Size, rng: np.random.Generator, *, recompute_boxes: bool = False) -> Sample:
    """A part of at most (rows, columns), anywhere; it may hold no instance."""
    top, left = (int(rng.integers(max(whole - part, 0) + 1)) for whole, part in zip(sample.size, size, strict=True))
    return crop(sample, top, left, size, recompute_boxes=recompute_boxes)


def crop(sample: Sample, top: int, left: int, size: Size, *, recompute_boxes: bool = False) -> Sample:
    """The part of at most (rows, columns) from (top, left) on, without the instances whose boxes lie outside.

    Args:
        recompute_boxes: take the box of an instance that is cut from the rest of its mask, instead of clipping it, and
            drop instances without a pixel. A box that is not cut stays exact to fractions of a pixel.
    """
    part = (slice(top, top + size[0]), slice(left, left + size[1]))
    image = np.ascontiguousarray(sample.image[part])
    shifted = sample.boxes - np.array([left, top, left, top], np.float32)
    boxes = clip_boxes(shifted, (image.shape[0], image.shape[1]))
    stays = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = sample.masks[(slice(None), *part)]
    if recompute_boxes:
        is_cut = (boxes != shifted).any(axis=1)
        boxes = np.where(is_cut[:, None], mask_boxes(masks), boxes)
        stays &= masks.any(axis=(1, 2))
    return Sample(image, boxes[stays], sample.labels[stays], np.ascontiguousarray(masks[stays]))


def clip_boxes(boxes: Float32[np.ndarray, "P 4"], size: Size) -> Float32[np.ndarray, "P 4"]:
    rows, columns = size
    return boxes.clip(0, np.array([columns, rows, columns, rows], np.float32))


def mask_boxes(masks: UInt8[np.ndarray, "P H W"]) -> Float32[np.ndarray, "P 4"]:
    """The tightest box around the pixels of each mask; the whole image around none."""
    rows, columns = np.asarray(masks.any(axis=2)), np.asarray(masks.any(axis=1))
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    bottom = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def collate(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    size_divisor: int,
    square_pad: int | None = None,
    device: torch.device,
) -> Float[Tensor, "B 3 H W"]:
    """One batch, padded with the mean color on the right and below.

    Args:
        size_divisor: sides of the batch are multiples of it.
        square_pad: side of the batch, rounded up to such a multiple; None: that of the largest image.
    """
    largest = (max(image.shape[axis] for image in images) for axis in (0, 1))
    sides = largest if square_pad is None else (square_pad, square_pad)
    rows, columns = (-(-side // size_divisor) * size_divisor for side in sides)
    batch = torch.zeros(len(images), 3, rows, columns, device=device)
    for padded, image in zip(batch, images, strict=True):
        pixels = torch.from_numpy(image)[None].to(device)
        padded[:, : image.shape[0], : image.shape[1]] = normalized(pixels, mean, std)[0]
    return batch


def to_targets(sample: Sample, device: torch.device) -> Targets:
    boxes, labels, masks = (torch.from_numpy(array).to(device) for array in sample[1:])
    return Targets(boxes, labels, masks)
