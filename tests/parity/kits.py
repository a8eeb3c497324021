"""Finding parity kits: numbers from the original programs (see kits/README.md).

They are sought in the folders that SELFPATCH_PARITY_KITS names (several are separated by ":"); without the variable, in
kits/ beside this file.
"""

import os
from pathlib import Path

ROOTS = os.environ.get("SELFPATCH_PARITY_KITS", str(Path(__file__).parent / "kits")).split(":")


def find_kits(*files: str) -> list[Path]:
    """Every folder, at any depth, that holds all of these files and folders: a kit is known by them, not by its name."""
    first, *others = files
    return sorted(
        path.parent
        for root in ROOTS
        for path in Path(root).rglob(first)
        if all((path.parent / other).exists() for other in others)
    )
