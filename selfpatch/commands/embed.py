"""`selfpatch embed`: what a model makes of every image of a folder, as numpy files."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.hardware import find_device
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.errors import working
from selfpatch.evaluation.features import floor_to_patch_multiple, input_size, normalized, prefetch, resize_image
from selfpatch.output.atomic_files import atomic_write, require_writable
from selfpatch.output.progress import say, track
from selfpatch.output.versions import versions

BATCH_SIZE = 16


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
        UserError: a model, images or device that are not there or do not fit; `out` cannot be written.
    """
    out = Path(out)
    require_writable(out)
    found_device = find_device(device)
    folder = ImageFolder(Path(images))
    backbone = load_backbone(model, device=found_device, num_heads=num_heads)
    for note in backbone.notes:
        say(note)
    size = image_size or min(backbone.model.patch_embed.img_size)
    floor_to_patch_multiple(size, backbone.patch_size)

    def read(index: int) -> tuple[str, np.ndarray | UnreadableImage]:
        name = str(folder.path(index).relative_to(images))
        try:
            pixels = folder.read(index)
        except UnreadableImage as error:
            return name, error
        return name, resize_image(pixels, input_size(pixels.shape[:2], size, backbone.patch_size, resize="keep_aspect"))

    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(folder), BATCH_SIZE)
    batches = prefetch(read, (range(i, min(i + BATCH_SIZE, len(folder))) for i in starts))
    names, rows, unreadable = [], [], []
    for batch in track(batches, "embedding", len(starts)):
        unreadable += [f"{name}\t{error}" for name, error in batch if isinstance(error, UnreadableImage)]
        readable = [(name, pixels) for name, pixels in batch if isinstance(pixels, np.ndarray)]
        for name, vectors in encode(backbone, readable, level, found_device):
            names.append(name)
            if level == "patch":
                save_array(out / "patches" / f"{name}.npy", vectors.astype(dtype))
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
    backbone: Backbone, images: list[tuple[str, UInt8[np.ndarray, "_h _w 3"]]], level: str, device: torch.device
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """One vector an image [D], or one a patch [R, S, D], in float32; neighbours of one size are encoded together."""
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
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
