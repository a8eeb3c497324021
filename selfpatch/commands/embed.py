"""`selfpatch embed`: the tokens of every image of a folder, as files of NumPy, Zarr, Parquet or safetensors."""

import json
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.data.image_files import evenly_spaced
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.source import ImageSource
from selfpatch.errors import UserError, working
from selfpatch.evaluation.features import (
    batches,
    floor_to_patch_multiple,
    input_size,
    normalized,
    prefetch,
    resize_image,
)
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.output.atomic_files import atomic_write, require_writable
from selfpatch.output.progress import track
from selfpatch.output.terminal import say
from selfpatch.output.token_files import FORMATS, save_array
from selfpatch.output.versions import versions

BATCH_SIZE = 16
# The long side is at most so many times the short side that was asked for: a line of 1 x 400 px would be 48 x 19,200.
MAX_ASPECT = 8
# Images whose sizes the room on the disk is estimated from.
NUM_MEASURED = 16
# In which one OUT must agree: values of embeddings.json.
IDENTITY = ("level", "format", "dtype", "image_size", "fingerprint", "images_fingerprint")


def embed(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    level: str = "image",
    format: str = "npy",
    image_size: int | None = None,
    dtype: str = "float16",
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
) -> int:
    """Write the tokens of all images below `images`; returns how many there are. Called again, it goes on.

        OUT/files.txt         the images, one per line, as seen from `images`; odd characters in names are escaped
        OUT/embeddings.npy    level "image": [images, D] in that order: the class token, or the mean of patch tokens
        OUT/patches/NAME.npy  level "patch": [R, S, D] for the image NAME of files.txt (".." in it becomes "__")
        OUT/index.jsonl       where the tokens of each image are: `name`, `rows`, `columns`, `file`, `start`; not of
                              embeddings.npy
        OUT/embeddings.json   which of these, and of what
        OUT/unreadable.txt    images that could not be read, with the reason, if there are any

    Other formats have files of many images instead of .npy, of both levels (an image is one row and one column):

        OUT/tokens.zarr                     "zarr": [tokens, D], an image's from `start` on, row by row
        OUT/tokens-00000.parquet, ...       "parquet": one row per token: `name`, `row`, `column`, `token`
        OUT/tokens-00000.safetensors, ...   "safetensors": one tensor [R, S, D] per image, by its name

    Args:
        model: anything `load_backbone` takes.
        format: "npy", "zarr", "parquet" or "safetensors".
        image_size: short side in pixels as the model gets them, shape kept, rounded down to whole patches; None: what
            it was built for. Of images that are more than MAX_ASPECT times as long as wide, the long side is MAX_ASPECT
            times this, and the short side at least one patch.
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.

    Raises:
        UserError: a model, images or device that are not there or do not fit; `out` cannot be written, holds others or
            has no room; the package for the format is not installed.
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

    # 2. What is there already, and room for the rest.
    image_vector = "class token" if backbone.has_cls_token else "mean of patch tokens"
    description = {
        "state": "running",
        "level": level,
        "format": format,
        "vector": "patch token" if level == "patch" else image_vector,
        "dim": backbone.embed_dim,
        "dtype": dtype,
        "image_size": size,
        "max_aspect": MAX_ASPECT,
        "patch_size": backbone.patch_size,
        "model": str(model),
        "fingerprint": fingerprint(backbone)[:12],
        "images": str(images),
        "images_fingerprint": source.fingerprint()[:12],
        "versions": versions(),
    }
    before = require_same(out, description)
    files = None if (level, format) == ("image", "npy") else FORMATS[format](out, backbone.embed_dim, dtype)
    done = set() if files is None else {entry.name for entry in files.entries}
    todo = [index for index in range(len(source)) if not done or source.name(index) not in done]
    require_room(out, source, todo, level, size, backbone, np.dtype(dtype).itemsize)
    out.mkdir(parents=True, exist_ok=True)
    num_bounded = before.get("num_bounded_images", 0) if done else 0
    if done:
        say(f"{len(done)} of {len(source)} images are there already: going on with {len(todo)}")
    write_json(out / DESCRIPTION, description)
    # 3. Encode.
    names, rows, unreadable = [], [], []
    read_batches = prefetch(read, batches(todo, BATCH_SIZE))
    for batch in track(read_batches, "embedding", -(-len(todo) // BATCH_SIZE)):
        unreadable += [f"{image.name}\t{image.pixels}" for image in batch if isinstance(image.pixels, UnreadableImage)]
        readable = [(image.name, image.pixels) for image in batch if isinstance(image.pixels, np.ndarray)]
        num_bounded += sum(image.is_bounded for image in batch)
        for name, vectors in encode(backbone, readable, level, found_device):
            if files is not None:
                files.add(name, vectors if level == "patch" else vectors[None, None])
            else:
                names.append(name)
                rows.append(vectors.astype(dtype))
    # 4. Lists, and what was done.
    if files is not None:
        files.close()
        names = [entry.name for entry in files.entries]
    elif rows:
        save_array(out / "embeddings.npy", np.stack(rows))
    write_lines(out / "files.txt", names)
    if unreadable:
        write_lines(out / "unreadable.txt", unreadable)
        say(f"{len(unreadable)} of {len(source)} images cannot be read and are left out: {out / 'unreadable.txt'}")
    if num_bounded:
        say(f"{num_bounded} images are more than {MAX_ASPECT} times as long as wide: their long side is shortened")
    for note in source.notes:
        say(note)
    finished = {"state": "done", "num_images": len(names), "num_bounded_images": num_bounded}
    write_json(out / DESCRIPTION, description | finished)
    say(f"{len(names)} images ({description['vector']}, {backbone.embed_dim} wide): {out}")
    return len(names)


DESCRIPTION = "embeddings.json"


def require_same(out: Path, description: dict[str, Any]) -> dict[str, Any]:
    """The description of what was begun in `out` before; nothing of an earlier version, which had no index.

    Raises:
        UserError: it differs in what makes the tokens.
    """
    path = out / DESCRIPTION
    if not path.exists():
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another folder, or remove it") from error
    if not isinstance(before, dict) or not set(IDENTITY) <= before.keys():
        return {}
    other = [
        f"{name} was {before[name]}, now {description[name]}" for name in IDENTITY if before[name] != description[name]
    ]
    if other:
        raise UserError(f"{out} holds other embeddings ({'; '.join(other)}); give another folder, or remove that one")
    return before


def require_room(
    out: Path, source: ImageSource, todo: list[int], level: str, size: int, backbone: Backbone, itemsize: int
) -> None:
    """Refuse work whose result the disk has no room for, estimated from the sizes of some images.

    Raises:
        UserError: there is less room.
    """
    tokens = []
    for index in [todo[place] for place in evenly_spaced(len(todo), NUM_MEASURED)] if todo else []:
        try:
            rows, columns = bounded_size(source.read(index).shape[:2], size, backbone.patch_size)
        except UnreadableImage:
            continue
        tokens.append(1 if level == "image" else rows * columns // (backbone.patch_size[0] * backbone.patch_size[1]))
    needed = np.mean(tokens or [0]) * len(todo) * backbone.embed_dim * itemsize
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{out} needs about {needed / 1e9:.1f} GB for {len(todo)} images of {np.mean(tokens):.0f} tokens, "
            f"{backbone.embed_dim} wide, and the disk has {free / 1e9:.1f} GB; give a folder on another disk, a "
            "smaller --image-size, --level image, or --dtype float16"
        )


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
def write_lines(path: Path, lines: list[str]) -> None:
    # Paths in JSON need not be valid UTF-8; what is not becomes an escape of JSON's.
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


@working()
def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        write_lines(temporary, [json.dumps(content, indent=2, ensure_ascii=False)])
