"""Whole small files of every format and kind that is read: what mutations start from."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image


def image_seeds() -> list[tuple[str, bytes]]:
    """(ending, content)."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (24, 20, 3), np.uint8)
    color, gray, deep = Image.fromarray(rgb), Image.fromarray(rgb[..., 0]), rng.integers(0, 65536, (24, 20), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [color, gray.convert("RGB")]}
    with_pillow: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("jpg", color, {"exif": exif.tobytes(), "comment": b"text"}),
        ("jpg", color, {"progressive": True, "icc_profile": bytes(range(256)) * 4}),
        ("jpg", color.convert("CMYK"), {}),
        ("jpg", gray, {"restart_marker_blocks": 1}),
        ("png", color, {}),
        ("png", color.convert("P"), {"transparency": 3}),
        ("png", color.convert("RGBA"), {}),
        ("png", gray.convert("1"), {}),
        ("png", Image.fromarray(deep), {}),
        ("png", color, frames),
        ("webp", color, {"lossless": True}),
        ("webp", color, {"exif": exif.tobytes()}),
        ("webp", color, frames),
        ("bmp", color, {}),
        ("bmp", color.convert("P"), {}),
        ("gif", color.convert("P"), {}),
        ("gif", color, frames),
        ("tif", color, {"compression": "tiff_lzw"}),
        ("tif", color, {"compression": "jpeg"}),
        ("tif", gray.convert("1"), {"compression": "group4"}),
        ("tif", color.convert("CMYK"), {"compression": "packbits"}),
    ]
    names = {"jpg": "JPEG", "tif": "TIFF"}
    seeds = []
    for ending, image, settings in with_pillow:
        image.save(content := io.BytesIO(), names.get(ending, ending.upper()), **settings)
        seeds.append((ending, content.getvalue()))
    arrays = [rgb, deep, deep.astype(np.float32), rng.random((9, 24, 20), np.float32), deep[..., None].repeat(4, 2)]
    for array in arrays:
        for compression in (None, "zlib"):
            tifffile.imwrite(content := io.BytesIO(), array, compression=compression)
            seeds.append(("tif", content.getvalue()))
        np.save(content := io.BytesIO(), array)
        seeds.append(("npy", content.getvalue()))
    tifffile.imwrite(content := io.BytesIO(), deep, tile=(16, 16))
    seeds.append(("tif", content.getvalue()))
    tifffile.imwrite(content := io.BytesIO(), deep[None].repeat(5, 0), imagej=True, metadata={"axes": "ZYX"})
    seeds.append(("tif", content.getvalue()))
    for save in (np.savez, np.savez_compressed):
        save(content := io.BytesIO(), deep)
        seeds.append(("npz", content.getvalue()))
    return seeds


def exported_backbone(folder: Path) -> bytes:
    from selfpatch.backbones.build import build_backbone
    from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
    from selfpatch.export.timm_file import export_timm
    from tests.small_models import tiny_config

    backbone = build_backbone(tiny_config().backbone, (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    export_timm(backbone, folder / "seed.safetensors")
    content = (folder / "seed.safetensors").read_bytes()
    (folder / "seed.safetensors").unlink()
    return content


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    # What exports write as JSON within JSON is opened, so that mutations reach it.
    for name, text in header.get("__metadata__", {}).items():
        if name not in ("format", "selfpatch_format", "selfpatch_version", "architecture"):
            header["__metadata__"][name] = json.loads(text)
    return header, content[8 + length :]


def join_safetensors(header: Any, data: bytes) -> bytes:
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header["__metadata__"].items()}
        header = header | {"__metadata__": texts}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def pickled(tensors: dict[str, Any], *, legacy: bool = False) -> bytes:
    import torch

    torch.save(tensors, content := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
    return content.getvalue()


def settings_tree() -> dict[str, Any]:
    from selfpatch.config.io import to_dict
    from tests.small_models import tiny_config

    return to_dict(tiny_config())


def as_yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode()


def manifest_seeds(names: list[str]) -> list[tuple[str, bytes]]:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"path": name, "label": i} for i, name in enumerate(names)]
    writers: dict[str, Callable[[], bytes]] = {
        "csv": lambda: ("path,label\n" + "".join(f'"{r["path"]}",{r["label"]}\n' for r in rows)).encode(),
        "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "txt": lambda: "\n".join(names).encode(),
    }
    parquet.write_table(pa.Table.from_pylist(rows), content := io.BytesIO())
    return [*((ending, write()) for ending, write in writers.items()), ("parquet", content.getvalue())]


def write_checkpoint(folder: Path, files: dict[str, bytes], manifest: object = None) -> Path:
    """A checkpoint below the folder as an attacker would write it: with checksums that are right; its folder."""
    step = folder / "step-00000003"
    step.mkdir(parents=True)
    for name, content in files.items():
        (step / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (step / "manifest.json").write_text(json.dumps(sums if manifest is None else manifest))
    return step
