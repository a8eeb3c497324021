"""result.json: what one evaluation came to, with everything that has to be known to compare it."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One model's score on one task.

    Args:
        protocol: the protocol's name, its every setting, and what it met: numbers of images and classes, the split.
        metrics: shares in [0, 1]; of segmentation also each class as "IoU/NAME", left out where it does not occur.
        model, data: as the user named them.
        details: what the model or its scores decided within the protocol.
        notes: what should be known of the weights and of the data.
    """

    task: str
    protocol: dict[str, Any]
    metrics: dict[str, float]
    model: str
    data: str
    seconds: float
    versions: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Whole or not at all: a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        # A path need not be valid UTF-8; what is not becomes an escape of JSON's, which is read back as it was.
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
