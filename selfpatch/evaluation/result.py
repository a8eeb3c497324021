"""result.json: what one evaluation came to, with everything that has to be known to compare it."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("selfpatch", "torch", "timm", "numpy", "pillow", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class Result:
    """One model's score on one task.

    Args:
        protocol: the protocol's name, its every setting, and what it met: numbers of images and classes, the split.
        metrics: shares in [0, 1]; of segmentation also each class as "IoU/NAME", left out where it does not occur.
        model, data: as the user named them.
    """

    task: str
    protocol: dict[str, Any]
    metrics: dict[str, float]
    model: str
    data: str
    seconds: float
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Whole or not at all: a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES}


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout, or built otherwise
