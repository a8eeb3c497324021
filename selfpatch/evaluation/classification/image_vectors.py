"""One vector an image out of a frozen backbone's tokens, as the classification of whole images takes it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from selfpatch.backbones.backbone import Tokens
from selfpatch.errors import UserError
from selfpatch.evaluation.features import Backbone, normalized, prefetch
from selfpatch.evaluation.protocols.knn_classification import ImageVector


def resize_and_center_crop(
    image: UInt8[np.ndarray, "H W 3"], resize_size: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of (rows, columns) of an image whose short side becomes resize_size, bicubic and antialiased."""
    resized = resize(Image.fromarray(image), [resize_size], InterpolationMode.BICUBIC)
    return np.array(center_crop(resized, list(size)))


# Not inference_mode: linear layers are trained on these vectors.
@torch.no_grad()
def encode(backbone: Backbone, pixels: UInt8[Tensor, "B H W 3"]) -> Tokens:
    """The tokens in float32 whatever autocast says; call it within `eval_mode`."""
    with torch.autocast(pixels.device.type, enabled=False):
        tokens = backbone(normalized(pixels, backbone.mean, backbone.std))
    cls_token = None if tokens.cls_token is None else tokens.cls_token.float()
    return tokens._replace(cls_token=cls_token, patch_tokens=tokens.patch_tokens.float())


def has_class_token(backbone: Backbone, size: tuple[int, int], device: torch.device) -> bool:
    """As its tokens of an image of (rows, columns) show; call it within `eval_mode`."""
    return encode(backbone, torch.zeros(1, *size, 3, dtype=torch.uint8, device=device)).cls_token is not None


def choose_vector(wanted: ImageVector, *, has_class_token: bool) -> ImageVector:
    """What stands for an image: as wanted, "auto" resolved.

    Raises:
        UserError: the class token is wanted of a model that has none.
    """
    if wanted == "auto":
        return "class_token" if has_class_token else "mean"
    if wanted != "mean" and not has_class_token:
        raise UserError(f"vector is {wanted}, but this model has no class token; choose mean or auto")
    return wanted


def image_vector(tokens: Tokens, vector: ImageVector) -> Float[Tensor, "B D"]:
    """Twice as wide for both side by side."""
    mean = tokens.patch_tokens.mean(dim=1)
    if vector == "mean":
        return mean
    assert tokens.cls_token is not None
    return tokens.cls_token if vector == "class_token" else torch.cat([tokens.cls_token, mean], dim=-1)


def encode_images(
    backbone: Backbone,
    items: Sequence[Any],
    read: Callable[[Any], UInt8[np.ndarray, "H W 3"]],
    *,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tokens]:
    """The tokens of images that `read` gives in one size, batch by batch; call it within `eval_mode`."""
    batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
    for images in prefetch(read, batches):
        yield encode(backbone, torch.from_numpy(np.stack(images)).to(device))
