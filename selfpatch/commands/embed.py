"""`selfpatch embed`: the tokens of every image of a folder, as numpy files."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.errors import working
from selfpatch.evaluation.features import (
    batches,
    floor_to_patch_multiple,
    input_size,
    normalized,
    prefetch,
    resize_image,
)
from selfpatch.output.atomic_files import atomic_write, require_writable
from selfpatch.output.printable import as_path_below
from selfpatch.output.progress import track
from selfpatch.output.terminal import say
from selfpatch.output.versions import versions

BATCH_SIZE = 16
# The long side is at most so many times the short side that was asked for: a line of 1 x 400 px would be 48 x 19,200.
MAX_ASPECT = 8


def embed(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    level: str = "image",
    image_size: int | None = None,
    dtype: str = "float16",
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
) -> int:
    """Write the tokens of all images below `images`; returns how many there are.

        OUT/files.txt         the images, one per line, as seen from `images`; odd characters in names are escaped
        OUT/embeddings.npy    level "image": [images, D] in that order: the class token, or the mean of patch tokens
        OUT/patches/NAME.npy  level "patch": [R, S, D] for the image NAME of files.txt (".." in it becomes "__")
        OUT/embeddings.json   which of these, and of what
        OUT/unreadable.txt    images that could not be read, with the reason, if there are any

    Args:
        model: anything `load_backbone` takes.
        image_size: short side in pixels as the model gets them, shape kept, rounded down to whole patches; None: what
            it was built for. Of images that are more than MAX_ASPECT times as long as wide, the long side is MAX_ASPECT
            times this, and the short side at least one patch.
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.

    Raises:
        UserError: a model, images or device that are not there or do not fit; `out` cannot be written.
    """
    out = Path(out)
    require_writable(out)
    # 1. Model and images.
    found_device = find_device(device)
    source = open_images(images)
    backbone = load_backbone(
        model, device=found_device, num_heads=num_heads, network=network, num_channels=num_channels, mean=mean, std=std
    )
    source.pixels = backbone.pixels
    for note in backbone.notes:
        say(note)
    size = image_size or min(backbone.model.patch_embed.img_size)
    floor_to_patch_multiple(size, backbone.patch_size)

    def read(index: int) -> Image:
        name = source.name(index)
        try:
            pixels = source.read(index)
        except UnreadableImage as error:
            return Image(name, error)
        bounded = is_too_long(pixels.shape[:2])
        return Image(name, resize_image(pixels, bounded_size(pixels.shape[:2], size, backbone.patch_size)), bounded)

    # 2. Encode.
    out.mkdir(parents=True, exist_ok=True)
    names, rows, unreadable, num_bounded = [], [], [], 0
    read_batches = prefetch(read, batches(range(len(source)), BATCH_SIZE))
    for batch in track(read_batches, "embedding", -(-len(source) // BATCH_SIZE)):
        unreadable += [f"{image.name}\t{image.pixels}" for image in batch if isinstance(image.pixels, UnreadableImage)]
        readable = [(image.name, image.pixels) for image in batch if isinstance(image.pixels, np.ndarray)]
        num_bounded += sum(image.is_bounded for image in batch)
        for name, vectors in encode(backbone, readable, level, found_device):
            names.append(name)
            if level == "patch":
                save_array(out / "patches" / f"{as_path_below(name)}.npy", vectors.astype(dtype))
            else:
                rows.append(vectors.astype(dtype))
    # 3. Lists, and what was done.
    if rows:
        save_array(out / "embeddings.npy", np.stack(rows))
    write_lines(out / "files.txt", names)
    if unreadable:
        write_lines(out / "unreadable.txt", unreadable)
        say(f"{len(unreadable)} of {len(source)} images cannot be read and are left out: {out / 'unreadable.txt'}")
    if num_bounded:
        say(f"{num_bounded} images are more than {MAX_ASPECT} times as long as wide: their long side is shortened")
    for note in source.notes:
        say(note)
    image_vector = "class token" if backbone.has_cls_token else "mean of patch tokens"
    description = {
        "level": level,
        "vector": "patch token" if level == "patch" else image_vector,
        "dim": backbone.embed_dim,
        "dtype": dtype,
        "image_size": size,
        "max_aspect": MAX_ASPECT,
        "num_bounded_images": num_bounded,
        "patch_size": backbone.patch_size,
        "num_images": len(names),
        "model": str(model),
        "images": str(images),
        "versions": versions(),
    }
    write_lines(out / "embeddings.json", [json.dumps(description, indent=2, ensure_ascii=False)])
    say(f"{len(names)} images ({description['vector']}, {backbone.embed_dim} wide): {out}")
    return len(names)


class Image(NamedTuple):
    """An image as the model gets it, or why there is none."""

    name: str
    pixels: Real[np.ndarray, "_h _w _c"] | UnreadableImage
    is_bounded: bool = False


def is_too_long(image_size: tuple[int, int]) -> bool:
    return max(image_size) > MAX_ASPECT * min(image_size)


def bounded_size(image_size: tuple[int, int], size: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) in pixels, whole patches: `size` is the short side, and MAX_ASPECT of it the longest one."""
    if not is_too_long(image_size):
        return input_size(image_size, size, patch_size, resize="keep_aspect")
    rows, columns = (
        max(side * MAX_ASPECT * size // max(image_size) // patch, 1) * patch
        for side, patch in zip(image_size, patch_size, strict=True)
    )
    return rows, columns


def encode(
    backbone: Backbone, images: list[tuple[str, Real[np.ndarray, "_h _w _c"]]], level: str, device: torch.device
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """One vector per image [D], or per patch [R, S, D], in float32; neighbors of one size are encoded together."""
    for _, group in groupby(images, key=lambda image: image[1].shape):
        names, pixels = zip(*group, strict=True)
        with torch.no_grad():
            batch = torch.from_numpy(np.stack(pixels)).to(device)
            tokens = backbone(normalized(batch, backbone.mean, backbone.std))
        if level == "patch":
            vectors = tokens.patch_tokens.unflatten(1, tokens.grid_size)
        else:
            vectors = tokens.patch_tokens.mean(dim=1) if tokens.cls_token is None else tokens.cls_token
        yield from zip(names, vectors.float().cpu().numpy(), strict=True)


@working()
def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


@working()
def write_lines(path: Path, lines: list[str]) -> None:
    # Paths in JSON need not be valid UTF-8; what is not becomes an escape of JSON's.
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
