"""Object discovery: one box per image by the similarities of its patches, scored by CorLoc."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from selfpatch.backbones.backbone import Backbone
from selfpatch.data.shown_colors import shown_colors
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.box_folder import Box, BoxFolder, BoxImage
from selfpatch.evaluation.datasets.labeled_images import spread
from selfpatch.evaluation.discovery.discovery_pictures import Discovery, draw_discoveries
from selfpatch.evaluation.discovery.lost import LostResult, find_object
from selfpatch.evaluation.features import (
    eval_mode,
    keep_ratio_size,
    normalized,
    patch_features,
    prefetch,
    resize_image,
)
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.task import EvalContext, EvalOutput

MAX_PATCHES = 2**15  # of an image; every pair of them is compared, in 4 GiB
NUM_SHOWN = 8
NOTABLE_SHARE = 0.9  # of boxes that are the whole image


def run(backbone: Backbone, root: Path, protocol: ObjectDiscovery, context: EvalContext) -> EvalOutput:
    """Find one object per image by LOST; CorLoc is the fraction of images whose box overlaps a true one enough.

    Boxes are written to OUT/boxes.json.

    Raises:
        UserError: an image has too many patches to compare all; or the data are not complete and consistent.

    Source: valeoai/LOST main_lost.py. Images of their own size, with zeros on the right and below up to whole patches.
    Differs: see `ObjectDiscovery.differs`.
    """
    data = BoxFolder(
        root,
        split=protocol.split,
        skip_hard=protocol.skip_hard,
        max_images=protocol.max_images,
        report=context.report,
        pixels=backbone.pixels,
    )
    for item in data.images:
        check_number_of_patches(item, input_size(item, protocol), backbone.patch_size)
    shown = set(spread(data.images, NUM_SHOWN))
    boxes: dict[str, list[float]] = {}
    discoveries: list[Discovery] = []
    num_hits = num_whole = 0
    with eval_mode(backbone), torch.no_grad():
        images = prefetch(data.read_image, ([item] for item in data.images))
        for done, (item, [pixels]) in enumerate(zip(data.images, images, strict=True), start=1):
            size = input_size(item, protocol)
            resized = torch.from_numpy(resize_image(pixels, size) if size != item.size else pixels)[None]
            image = padded(normalized(resized.to(context.device), backbone.mean, backbone.std), backbone.patch_size)
            found = find_object(features_of(backbone, image, protocol), num_candidates=protocol.num_candidates)
            box = in_pixels(found.box, backbone.patch_size, size, item.size)
            iou = float(box_iou(torch.tensor([box]).double(), torch.tensor(item.boxes).double()).max())
            num_hits += iou >= protocol.min_iou
            num_whole += is_whole_image(found)
            boxes[item.path.relative_to(root).as_posix()] = list(box)
            if item in shown:
                discoveries.append(
                    Discovery(
                        item.path.name,
                        shown_colors(pixels, backbone.pixels.shown_channels),
                        box,
                        item.boxes,
                        iou,
                        found,
                    )
                )
            context.report(done, len(data.images))
    draw_discoveries(discoveries, context.pictures / "objects.png")
    (context.out / "boxes.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")
    return EvalOutput(
        {"CorLoc": num_hits / len(data.images)},
        data.describe() | {"notes": whole_image_notes(num_whole, len(data.images), protocol)},
        {"num_boxes_of_whole_images": num_whole},
    )


def is_whole_image(found: LostResult) -> bool:
    return found.box == (0, 0, found.degree.shape[1], found.degree.shape[0])


def whole_image_notes(num_whole: int, num_images: int, protocol: ObjectDiscovery) -> list[str]:
    """A warning where LOST, as the original does too, found nothing: a low CorLoc then says little of the backbone."""
    if num_whole < NOTABLE_SHARE * num_images:
        return []
    other = "tokens" if protocol.features == "keys" else "keys"
    boxes = "every box is" if num_whole == num_images else f"{num_whole} of {num_images} boxes are"
    return [
        f"{boxes} the whole image: LOST separates patches by the sign of the dot products of their "
        f"{protocol.features}, and here almost all are positive (as with DINOv2's keys); try the {other} "
        f"(--features {other})"
    ]


def input_size(item: BoxImage, protocol: ObjectDiscovery) -> tuple[int, int]:
    """(rows, columns) in pixels, before padding."""
    return item.size if protocol.image_size is None else keep_ratio_size(item.size, protocol.image_size)


def check_number_of_patches(item: BoxImage, size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    rows, columns = (-(-side // patch) for side, patch in zip(size, patch_size, strict=True))
    if rows * columns > MAX_PATCHES:
        raise UserError(
            f"the image {item.path} has {rows} x {columns} patches at {size[1]} x {size[0]} pixels, more than the "
            f"{MAX_PATCHES} of which every pair can be compared; give a smaller size (image-size)"
        )


def padded(image: Float[Tensor, "1 _c H W"], patch_size: tuple[int, int]) -> Float[Tensor, "1 _c H2 W2"]:
    """Pad with zeros on the right and below, up to whole patches."""
    bottom, right = (-side % patch for side, patch in zip(image.shape[2:], patch_size, strict=True))
    return F.pad(image, (0, right, 0, bottom))


def features_of(
    backbone: Backbone, image: Float[Tensor, "1 _c H W"], protocol: ObjectDiscovery
) -> Float[Tensor, "D R S"]:
    if protocol.features == "tokens":
        return patch_features(backbone, image)[0]
    with torch.autocast(image.device.type, enabled=False):
        return backbone.last_attention_keys(image)[0].float()


def in_pixels(
    box: tuple[int, int, int, int], patch_size: tuple[int, int], size: tuple[int, int], image_size: tuple[int, int]
) -> Box:
    """Convert a box from patches of the input of `size` to pixels of the image, clipped to what is not padding."""
    left, top, right, bottom = box
    scale_y, scale_x = (own / given for own, given in zip(image_size, size, strict=True))
    return (
        left * patch_size[1] * scale_x,
        top * patch_size[0] * scale_y,
        min(right * patch_size[1], size[1]) * scale_x,
        min(bottom * patch_size[0], size[0]) * scale_y,
    )
