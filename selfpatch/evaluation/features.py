"""From images in a folder to patch tokens of a backbone: resizing, normalization, encoding, prefetching."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real, UInt8
from PIL import Image
from torch import Tensor

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.evaluation.protocols.decoder_training import BLOCKS

CACHE_BYTES = 2**30
READ_THREADS = 8
NUM_LEVELS = 4  # of a feature pyramid that decoders and detectors read

Item = TypeVar("Item")


def is_hierarchical(backbone: Backbone) -> bool:
    """True if its stages have several strides, as Swin's."""
    return len({stage.stride_px for stage in backbone.stages}) > 1


def scale_out_indices(backbone: Backbone, out_indices: Sequence[int]) -> list[int]:
    """Blocks at the same fractions of the depth as `out_indices` of twelve blocks; all four stages of a hierarchy.

    Raises:
        UserError: a hierarchical backbone of another number of stages.
    """
    depth = len(backbone.stages)
    if not is_hierarchical(backbone):
        return [-(-(index + 1) * depth // BLOCKS) - 1 for index in out_indices]
    if depth != NUM_LEVELS:
        raise UserError(
            f"a feature pyramid takes {NUM_LEVELS} maps, and this backbone has {depth} stages; choose another one"
        )
    return list(range(depth))


def floor_to_patch_multiple(size: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """A square of this side, rounded down to whole patches: (rows, columns) in pixels.

    Raises:
        UserError: not one patch fits.
    """
    if size < max(patch_size):
        raise UserError(
            f"image-size is {size} px, less than one patch of {patch_size[0]} x {patch_size[1]}; make it larger"
        )
    return size // patch_size[0] * patch_size[0], size // patch_size[1] * patch_size[1]


def input_size(
    image_size: tuple[int, int], size: int, patch_size: tuple[int, int], *, resize: Literal["square", "keep_aspect"]
) -> tuple[int, int]:
    """(rows, columns) in pixels, whole patches, that an image of (rows, columns) is resized to."""
    rows, columns = floor_to_patch_multiple(size, patch_size)
    if resize == "square":
        return rows, columns
    height, width = (side * size // min(image_size) for side in image_size)
    return height // patch_size[0] * patch_size[0], width // patch_size[1] * patch_size[1]


def keep_ratio_size(image_size: tuple[int, int], short_side: int, long_side: int | None = None) -> tuple[int, int]:
    """The largest (rows, columns) with the aspect kept whose sides are at most these; None: as long as it is."""
    factor = short_side / min(image_size)
    if long_side is not None:
        factor = min(factor, long_side / max(image_size))
    height, width = (max(1, int(side * factor + 0.5)) for side in image_size)
    return height, width


def resize_image(
    image: Real[np.ndarray, "H W C"], size: tuple[int, int], *, mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Real[np.ndarray, "H2 W2 C"]:
    """Antialiased, to (rows, columns): 8-bit RGB by Pillow, all else by torch, which filters alike."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        resampling = Image.Resampling.BILINEAR if mode == "bilinear" else Image.Resampling.BICUBIC
        return np.array(Image.fromarray(image).resize((size[1], size[0]), resampling))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size, mode=mode, antialias=True)[0].permute(1, 2, 0)
    if image.dtype == np.uint8:
        return resized.round_().clamp_(0, 255).to(torch.uint8).contiguous().numpy()
    return resized.clamp_(0, 1).contiguous().numpy()


def resize_mask(mask: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "H2 W2"]:
    """Nearest label, to (rows, columns)."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def normalized(
    images: Real[Tensor, "B H W C"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B C H W"]:
    """Levels from 0 to 255, or values in [0, 1] as floating point."""
    values = images if images.is_floating_point() else images / 255
    centered = values - torch.tensor(mean, device=images.device)
    return (centered / torch.tensor(std, device=images.device)).permute(0, 3, 1, 2).contiguous()


# Not inference_mode: a linear layer is trained on these tokens, and what a model caches on its way (resampled position
# embeddings, say) must stay fit for training.
@torch.no_grad()
def patch_features(backbone: Backbone, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D R S"]:
    """The backbone's patch tokens as a map, in float32 whatever autocast says; call it within `eval_mode`."""
    with torch.autocast(images.device.type, enabled=False):
        tokens = backbone(images)
    return tokens.patch_tokens.float().transpose(1, 2).unflatten(2, tokens.grid_size)


class RowBuffer:
    """A tensor of known length that is filled part by part: no list of parts beside it, as torch.cat would need."""

    def __init__(self, length: int):
        self._length, self._filled = length, 0
        self._rows: Tensor | None = None

    def add(self, part: Float[Tensor, "n D"]) -> None:
        """The first part settles width, type and device."""
        if self._rows is None:
            self._rows = part.new_empty(self._length, part.shape[1])
        self._rows[self._filled : self._filled + len(part)] = part
        self._filled += len(part)

    def __len__(self) -> int:
        return self._filled

    @property
    def rows(self) -> Float[Tensor, "N D"]:
        assert self._rows is not None and self._filled == self._length
        return self._rows


@contextmanager
def eval_mode(backbone: Backbone) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode it was in."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class ReadCache:
    """Caches the results of `read(item)` up to CACHE_BYTES; further items are read every time."""

    def __init__(self, read: Callable[[Any], Any]):
        self._read = read
        self._kept: dict[Any, Any] = {}
        self._num_bytes = 0

    def __call__(self, item: Any) -> Any:
        if item in self._kept:
            return self._kept[item]
        value = self._read(item)
        self._num_bytes += sum(array.nbytes for array in value)
        if self._num_bytes <= CACHE_BYTES:
            self._kept[item] = value
        return value


def batches(items: Sequence[Item], batch_size: int) -> Iterator[Sequence[Item]]:
    """Consecutive slices of at most batch_size items."""
    return (items[start : start + batch_size] for start in range(0, len(items), batch_size))


def prefetch(read: Callable[[Any], Any], grouped: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    """Yield `[read(item) for item in batch]` per batch, read by threads that are one batch ahead."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        waiting = None
        for batch in grouped:
            submitted = [pool.submit(read, item) for item in batch]
            if waiting is not None:
                yield [future.result() for future in waiting]
            waiting = submitted
        if waiting is not None:
            yield [future.result() for future in waiting]
