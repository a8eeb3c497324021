"""Settings under the names they had before, so that an old config.yaml and an old checkpoint still load."""

import copy
import dataclasses
from typing import Any

from selfpatch.config.pretrain import PretrainConfig
from selfpatch.errors import UserError

# Old name -> name of today.
RENAMED = {
    "backbone.position_resampling": "backbone.pos_embed_interpolation",
    "crops.flip_prob": "crops.hflip_prob",
    "crops.grey_prob": "crops.grayscale_prob",
    "crops.blur_radius": "crops.blur_sigma",
    "crops.jitter": "crops.color_jitter",
    "crops.jitter_prob": "crops.color_jitter_prob",
    "objectives.selfpatch.borders": "objectives.selfpatch.padding_mode",
    "optim.clip": "optim.clip_mode",
    "evaluate.num_neighbours": "evaluate.num_neighbors",
    "efficiency.recompute": "efficiency.activation_checkpointing",
    "efficiency.light": "efficiency.color_augmentation",
    "run.keep": "run.max_to_keep",
    "run.max_bad_share": "run.max_bad_fraction",
    "run.stop_after_steps": "run.stop_at_step",
}

# Name of today -> old value -> value of today.
RENAMED_VALUES = {
    "backbone.pos_embed_interpolation": {"timm": "antialias", "dino": "offset"},
    "objectives.selfpatch.padding_mode": {"wrap": "circular", "clip": "none"},
    "efficiency.activation_checkpointing": {"nothing": "none", "activations": "selective", "blocks": "full"},
    "efficiency.color_augmentation": {"workers": "worker"},
}


def as_begun(config: PretrainConfig, begun: PretrainConfig) -> PretrainConfig:
    """The settings of a run that goes on, with those of its beginning that later versions express otherwise.

    "always" was 10,000 epochs once, during which gradients were made, counted in the global clip, and dropped.
    """
    objectives = config.objectives
    for name, old in begun.objectives.given().items():
        new = getattr(objectives, name)
        heads = getattr(old, "head", None), getattr(new, "head", None)
        if [head and head.freeze_prototypes_epochs for head in heads] == [10_000, "always"]:
            head = dataclasses.replace(new.head, freeze_prototypes_epochs=10_000)
            objectives = dataclasses.replace(objectives, **{name: dataclasses.replace(new, head=head)})
    return dataclasses.replace(config, objectives=objectives)


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the settings, as nested dicts, in which every old name and value is that of today.

    Raises:
        UserError: a setting is given under both of its names.
    """
    values = copy.deepcopy(values)
    for old, new in RENAMED.items():
        group_name, _, last = old.rpartition(".")
        group = _group(values, group_name)
        if group is None or last not in group:
            continue
        target = new.removeprefix(f"{group_name}.")
        if target in group:
            raise UserError(f"{old} is the old name of {new}; give one of the two")
        # In place, so that files keep their order.
        renamed = {target if name == last else name: value for name, value in group.items()}
        group.clear()
        group.update(renamed)
    for name, today in RENAMED_VALUES.items():
        group_name, _, last = name.rpartition(".")
        group = _group(values, group_name)
        if group is not None and isinstance(group.get(last), str):
            group[last] = today.get(group[last], group[last])
    return values


def _group(values: Any, name: str) -> dict[str, Any] | None:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else None
