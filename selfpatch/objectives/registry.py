"""All objectives by the names of their configs in `ObjectivesConfig`."""

from selfpatch.config import ObjectivesConfig
from selfpatch.objectives.dino import DINO
from selfpatch.objectives.koleo import KoLeo
from selfpatch.objectives.objective import Objective
from selfpatch.objectives.selfpatch import SelfPatch

OBJECTIVES = {
    "dino": DINO,
    "selfpatch": SelfPatch,
    "koleo": KoLeo,
}


def build_objectives(config: ObjectivesConfig, dim: int, *, steps_per_epoch: int) -> dict[str, Objective]:
    """The objectives that are set, for tokens of width `dim`."""
    return {
        name: objective(dim, settings, steps_per_epoch=steps_per_epoch)
        for name, objective in OBJECTIVES.items()
        if (settings := getattr(config, name)) is not None
    }
