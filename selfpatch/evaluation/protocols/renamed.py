"""Settings that had another name in earlier versions, so that results and heads written then are still understood."""

from typing import Any

RENAMED_SETTINGS = {
    "distort_colors": "photometric_distortion",
    "flip_prob": "hflip_prob",
    "heads": "head_norm",
    "max_class_share": "cat_max_ratio",
    "num_neighbours": "num_neighbors",
    "taps": "out_indices",
}
RENAMED_VALUES = {"head_norm": {"plain": "none", "normed": "layer_norm"}}


def current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a protocol, stored by any version, under today's names."""
    renamed = {RENAMED_SETTINGS.get(name, name): value for name, value in settings.items()}
    for name, values in RENAMED_VALUES.items():
        if isinstance(renamed.get(name), str):
            renamed[name] = values.get(renamed[name], renamed[name])
    return renamed
