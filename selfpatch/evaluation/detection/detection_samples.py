"""Images with boxes and masks for a detector: how they are varied in training, and put into one batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from selfpatch.evaluation.datasets.coco import CocoImage, targets
from selfpatch.evaluation.detection.detector import Size, Targets
from selfpatch.evaluation.features import keep_ratio_size, normalized, resize_image, resize_mask
from selfpatch.evaluation.protocols.mask_rcnn import MaskRCNN


class Sample(NamedTuple):
    """An image and what is on it: boxes as left, top, right, bottom in its pixels, labels 0 to C - 1."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float32[np.ndarray, "P 4"]
    labels: Int64[np.ndarray, "P"]
    masks: UInt8[np.ndarray, "P H W"]

    @property
    def size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]


def read_sample(item: CocoImage) -> Sample:
    """As it is in the file, without crowds; boxes are cut off at the image's border."""
    learned = targets(item)
    labels = np.array([instance.label for instance in learned], np.int64)
    return Sample(item.read(), clip_boxes(item.boxes(learned), item.size), labels, item.masks(learned))


def augment(sample: Sample, rng: np.random.Generator, protocol: MaskRCNN) -> Sample:
    """A random variant as the protocol has it.

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
        return random_crop(sample, (protocol.image_size, protocol.image_size), rng)
    if rng.random() < 0.5:
        sample = resize(
            sample, keep_ratio_size(sample.size, int(rng.choice(protocol.crop_short_sides)), protocol.long_side)
        )
        low, high = protocol.crop_sides
        rows, columns = (int(rng.integers(min(side, low), min(side, high) + 1)) for side in sample.size)
        sample = random_crop(sample, (rows, columns), rng)
    return resize(sample, keep_ratio_size(sample.size, int(rng.choice(protocol.short_sides)), protocol.long_side))


def hflip(sample: Sample) -> Sample:
    """Left becomes right."""
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = sample.size[1] - sample.boxes[:, [2, 0]]
    image, masks = (np.ascontiguousarray(array) for array in (sample.image[:, ::-1], sample.masks[:, :, ::-1]))
    return Sample(image, boxes, sample.labels, masks)


def resize(sample: Sample, size: Size) -> Sample:
    """To (rows, columns); masks by the nearest pixel, so that they stay masks."""
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


def random_crop(sample: Sample, size: Size, rng: np.random.Generator) -> Sample:
    """A part of at most (rows, columns), anywhere; nothing may be left on it."""
    top, left = (int(rng.integers(max(whole - part, 0) + 1)) for whole, part in zip(sample.size, size, strict=True))
    return crop(sample, top, left, size)


def crop(sample: Sample, top: int, left: int, size: Size) -> Sample:
    """The part from there on; instances whose boxes it does not meet are gone."""
    part = (slice(top, top + size[0]), slice(left, left + size[1]))
    image = np.ascontiguousarray(sample.image[part])
    boxes = clip_boxes(sample.boxes - np.array([left, top, left, top], np.float32), (image.shape[0], image.shape[1]))
    stays = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = np.ascontiguousarray(sample.masks[(stays, *part)])
    return Sample(image, boxes[stays], sample.labels[stays], masks)


def clip_boxes(boxes: Float32[np.ndarray, "P 4"], size: Size) -> Float32[np.ndarray, "P 4"]:
    rows, columns = size
    return boxes.clip(0, np.array([columns, rows, columns, rows], np.float32))


def collate(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    multiple: int,
    device: torch.device,
) -> Float[Tensor, "B 3 H W"]:
    """One batch as large as the largest of them and a multiple of so many pixels, filled up with the mean colour."""
    rows, columns = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (0, 1))
    batch = torch.zeros(len(images), 3, rows, columns, device=device)
    for place, image in zip(batch, images, strict=True):
        pixels = torch.from_numpy(image)[None].to(device)
        place[:, : image.shape[0], : image.shape[1]] = normalized(pixels, mean, std)[0]
    return batch


def to_targets(sample: Sample, device: torch.device) -> Targets:
    boxes, labels, masks = (torch.from_numpy(array).to(device) for array in sample[1:])
    return Targets(boxes, labels, masks)
