"""Versions of this package and of what its numbers depend on."""

import importlib.metadata
import platform

PACKAGES = (
    "selfpatch",
    "torch",
    "timm",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "scipy",
    "torchvision",
    "faster-coco-eval",
)


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES}


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout, or built otherwise
