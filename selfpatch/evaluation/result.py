"""result.json: the scores of one evaluation, with everything needed to compare them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfpatch.output.atomic_files import atomic_write

# Settings that had another name in earlier versions: results and heads written then are still understood.
RENAMED_SETTINGS = {
    "distort_colors": "photometric_distortion",
    "flip_prob": "hflip_prob",
    "heads": "head_norm",
    "max_class_share": "cat_max_ratio",
    "num_neighbours": "num_neighbors",
    "taps": "out_indices",
}
RENAMED_VALUES = {"head_norm": {"plain": "none", "normed": "layer_norm"}}


@dataclass(frozen=True)
class Result:
    """One model's score on one task.

    Args:
        protocol: the protocol's name, its every setting, and dataset facts: numbers of images and classes, the split.
        metrics: fractions in [0, 1]; of segmentation also each class as "IoU/NAME", left out where it does not occur.
        model, data: as the user named them.
        details: choices made within the protocol, by the model or by its scores.
        notes: remarks on the weights and on the data.
        lower_is_better: metrics of which the lowest value is the best one; of all others the highest is.
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
    lower_is_better: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all: a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        # A path need not be valid UTF-8; what is not becomes an escape of JSON's, which is read back as it was.
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a protocol, stored by any version, under today's names."""
    renamed = {RENAMED_SETTINGS.get(name, name): value for name, value in settings.items()}
    for name, values in RENAMED_VALUES.items():
        if isinstance(renamed.get(name), str):
            renamed[name] = values.get(renamed[name], renamed[name])
    return renamed
