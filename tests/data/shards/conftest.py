"""A few small images in nested folders, and a cache folder of each test's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("a.png", "z.jpg", "b/one.png", "b/two.v2.png", "b/c/three.png", "d/ü\n.png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"
