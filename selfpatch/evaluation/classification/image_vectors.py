"""Image-level vectors from the tokens of a frozen backbone, for classification."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from selfpatch.backbones.backbone import Tokens
from selfpatch.errors import UserError
from selfpatch.evaluation.features import Backbone, batches, normalized, prefetch, resize_image
from selfpatch.evaluation.protocols.knn_classification import ImageVector

ENCODED_AT_ONCE = 128  # images: a large batch takes no more memory than DINOv2's share per GPU


def resize_and_center_crop(
    image: Real[np.ndarray, "H W C"], resize_size: int, size: tuple[int, int]
) -> Real[np.ndarray, "h w C"]:
    """Center crop of (rows, columns) of the image resized to a short side of resize_size, bicubic and antialiased."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        resized = resize(Image.fromarray(image), [resize_size], InterpolationMode.BICUBIC)
        return np.array(center_crop(resized, list(size)))
    factor = resize_size / min(image.shape[:2])
    # As torchvision: the long side is rounded down.
    rows, columns = (max(int(side * factor), resize_size) for side in image.shape[:2])
    planes = torch.from_numpy(resize_image(image, (rows, columns), mode="bicubic")).permute(2, 0, 1)
    return np.ascontiguousarray(center_crop(planes, list(size)).permute(1, 2, 0).numpy())


# Not inference_mode: linear layers are trained on these vectors.
@torch.no_grad()
def encode(backbone: Backbone, pixels: Real[Tensor, "B H W C"]) -> Tokens:
    """Tokens in float32 whatever autocast says; call it within `eval_mode`."""
    with torch.autocast(pixels.device.type, enabled=False):
        parts = [backbone(normalized(part, backbone.mean, backbone.std)) for part in pixels.split(ENCODED_AT_ONCE)]
    cls_tokens = [part.cls_token.float() for part in parts if part.cls_token is not None]
    patch_tokens = torch.cat([part.patch_tokens.float() for part in parts])
    return Tokens(torch.cat(cls_tokens) if cls_tokens else None, patch_tokens, parts[0].grid_size)


def has_class_token(backbone: Backbone, size: tuple[int, int], device: torch.device) -> bool:
    """Encodes a black image of (rows, columns) to find out; call it within `eval_mode`."""
    black = torch.zeros(1, *size, backbone.num_channels, dtype=torch.uint8, device=device)
    return encode(backbone, black).cls_token is not None


def choose_vector(wanted: ImageVector, *, has_class_token: bool) -> ImageVector:
    """Resolves "auto": the class token of a model that has one, else the mean of its patch tokens.

    Raises:
        UserError: the class token is wanted of a model that has none.
    """
    if wanted == "auto":
        return "class_token" if has_class_token else "mean"
    if wanted != "mean" and not has_class_token:
        raise UserError(f"vector is {wanted}, but this model has no class token; choose mean or auto")
    return wanted


def image_vector(tokens: Tokens, vector: ImageVector) -> Float[Tensor, "B D"]:
    """Vectors of one kind; "class_token_and_mean" is twice as wide, both concatenated."""
    mean = tokens.patch_tokens.mean(dim=1)
    if vector == "mean":
        return mean
    assert tokens.cls_token is not None
    return tokens.cls_token if vector == "class_token" else torch.cat([tokens.cls_token, mean], dim=-1)


def encode_images(
    backbone: Backbone,
    items: Sequence[Any],
    read: Callable[[Any], Real[np.ndarray, "H W C"]],
    *,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tokens]:
    """Tokens of the images that `read` returns, all of one size, batch by batch; call it within `eval_mode`."""
    for images in prefetch(read, batches(items, batch_size)):
        yield encode(backbone, torch.from_numpy(np.stack(images)).to(device))
