"""`selfpatch embed`: what a model makes of every image of a folder, as numpy files."""

import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import track

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.backbones.vit import ViT
from selfpatch.checkpoint import replacing, require_writable
from selfpatch.commands.devices import find_device
from selfpatch.data.decode import UnreadableImage
from selfpatch.data.image_folder import ImageFolder
from selfpatch.evaluation.features import fit_to_patches, input_size, normalized, read_ahead, resize_image
from selfpatch.evaluation.result import versions
from selfpatch.metric_logger import say

BATCH_SIZE = 16


class Read(NamedTuple):
    """An image as the model gets it, or the reason why there is none."""

    name: str
    pixels: UInt8[np.ndarray, "H W 3"] | None
    problem: str = ""


def embed(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    level: str = "image",
    image_size: int | None = None,
    dtype: str = "float16",
    num_heads: int | None = None,
    device: str = "auto",
) -> int:
    """Write the tokens of all images below `images`; returns how many there are.

        OUT/files.txt         the images, one a line, as seen from `images`
        OUT/embeddings.npy    level "image": [images, D] in that order: the class token, or the mean of patch tokens
        OUT/patches/NAME.npy  level "patch": [R, S, D] for the image NAME
        OUT/embeddings.json   which of these, and of what
        OUT/unreadable.txt    images that could not be read, with the reason, if there are any

    Args:
        model: anything `load_backbone` takes.
        image_size: short side in pixels as the model gets them, shape kept, rounded down to whole patches; None: what
            it was built for.
        num_heads: of a checkpoint of the original programs whose width is unusual; else it is known.

    Raises:
        ValueError: a model, images or device that are not there or do not fit; `out` cannot be written.
    """
    out = Path(out)
    require_writable(out)
    found_device = find_device(device)
    folder = ImageFolder(Path(images))
    backbone = load_backbone(model, device=found_device, num_heads=num_heads)
    for note in backbone.notes:
        say(note)
    size = image_size or min(backbone.model.patch_embed.img_size)
    fit_to_patches(size, backbone.patch_size)

    def read(index: int) -> Read:
        name = str(folder.path(index).relative_to(images))
        try:
            pixels = folder.read(index)
        except UnreadableImage as error:
            return Read(name, None, str(error))
        target = input_size(pixels.shape[:2], size, backbone.patch_size, resize="keep_aspect")
        return Read(name, resize_image(pixels, target))

    out.mkdir(parents=True, exist_ok=True)
    indices = (range(i, min(i + BATCH_SIZE, len(folder))) for i in range(0, len(folder), BATCH_SIZE))
    stderr = Console(stderr=True)
    bar = dict(
        total=math.ceil(len(folder) / BATCH_SIZE), console=stderr, transient=True, disable=not stderr.is_terminal
    )
    names, rows, unreadable = [], [], []
    for batch in track(read_ahead(read, indices), "embedding", **bar):
        unreadable += [f"{item.name}\t{item.problem}" for item in batch if item.pixels is None]
        for item, vectors in encode(backbone, [item for item in batch if item.pixels is not None], level, found_device):
            names.append(item.name)
            if level == "patch":
                save_array(out / "patches" / f"{item.name}.npy", vectors.astype(dtype))
            else:
                rows.append(vectors.astype(dtype))
    if rows:
        save_array(out / "embeddings.npy", np.stack(rows))
    write_lines(out / "files.txt", names)
    if unreadable:
        write_lines(out / "unreadable.txt", unreadable)
        say(f"{len(unreadable)} of {len(folder)} images cannot be read and are left out: {out / 'unreadable.txt'}")
    image_vector = "class token" if backbone.has_cls_token else "mean of patch tokens"
    description = {
        "level": level,
        "vector": "patch token" if level == "patch" else image_vector,
        "dim": backbone.embed_dim,
        "dtype": dtype,
        "image_size": size,
        "patch_size": backbone.patch_size,
        "num_images": len(names),
        "model": str(model),
        "images": str(images),
        "versions": versions(),
    }
    write_lines(out / "embeddings.json", [json.dumps(description, indent=2, ensure_ascii=False)])
    say(f"{len(names)} images ({description['vector']}, {backbone.embed_dim} wide): {out}")
    return len(names)


def encode(
    backbone: ViT, items: list[Read], level: str, device: torch.device
) -> Iterator[tuple[Read, Float[np.ndarray, "*grid D"]]]:
    """One vector an image, or one a patch [R, S, D], in float32; neighbours of one size go through the model together."""
    for _, group in groupby(items, key=lambda item: item.pixels.shape):
        same_size = list(group)
        pixels = torch.from_numpy(np.stack([item.pixels for item in same_size])).to(device)
        with torch.no_grad():
            tokens = backbone(normalized(pixels, backbone.mean, backbone.std))
        if level == "patch":
            vectors = tokens.patch_tokens.unflatten(1, tokens.grid_size)
        else:
            vectors = tokens.patch_tokens.mean(dim=1) if tokens.cls_token is None else tokens.cls_token
        yield from zip(same_size, vectors.float().cpu().numpy(), strict=True)


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
