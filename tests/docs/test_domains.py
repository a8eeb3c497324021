"""The commands of docs/your-images.md do what they say on images of their domain, as far as a dry run goes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from selfpatch.cli import main

PAGE = (Path(__file__).parents[2] / "docs/your-images.md").read_text()
SIZE = 96


def of_ct(path: Path, noise: np.random.Generator) -> None:
    """A slice in Hounsfield units, as pydicom's numbers with slope and intercept."""
    np.save(path.with_suffix(".npy"), noise.integers(-1000, 2000, (SIZE, SIZE), np.int16))


def of_satellite(path: Path, noise: np.random.Generator) -> None:
    pixels = noise.integers(0, 65535, (SIZE, SIZE, 6), np.uint16)
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


def of_surface(path: Path, noise: np.random.Generator) -> None:
    Image.fromarray(noise.integers(0, 256, (SIZE, SIZE), np.uint8)).save(path.with_suffix(".png"))


def of_microscope(path: Path, noise: np.random.Generator) -> None:
    """Two stains of a detector of 12 bits."""
    pixels = noise.integers(0, 4096, (SIZE, SIZE, 2), np.uint16)
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


DOMAINS = {
    "Medical": (of_ct, ["num-channels 1", "crops.mean (0.66"]),  # of numbers from -1000 to 2000 in that window
    "Aerial": (of_satellite, ["num-channels 6"]),
    "Industrial": (of_surface, ["patches of 8"]),
    "Microscopy": (of_microscope, ["num-channels 2", "4095"]),
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_command_of_a_domain(
    domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    write: Callable[[Path, np.random.Generator], None] = DOMAINS[domain][0]
    section = re.split(r"^## ", PAGE, flags=re.M)
    (section,) = (text for text in section if text.startswith(domain))
    (command,) = re.findall(r"^ +selfpatch (pretrain .*)$", section, re.M)
    monkeypatch.chdir(tmp_path)
    Path("IMAGES").mkdir()
    for index in range(24):
        write(Path(f"IMAGES/{index}"), np.random.default_rng(index))
    small = ["--backbone.embed-dim", "48", "--backbone.depth", "1", "--backbone.num-heads", "2", "--optim.steps", "50"]
    assert main([*shlex.split(command), "--dry-run", "--run.device", "cpu", *small]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert [words for words in DOMAINS[domain][1] if words in printed] == DOMAINS[domain][1], printed
    assert not Path("RUN").exists()
