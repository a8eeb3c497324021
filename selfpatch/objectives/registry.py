"""All objectives by the names of their configs in `ObjectivesConfig`."""

from selfpatch.config import ObjectivesConfig
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.objectives.dino import DINO
from selfpatch.objectives.gram import Gram
from selfpatch.objectives.ibot import IBOT
from selfpatch.objectives.koleo import KoLeo
from selfpatch.objectives.moby import MoBY
from selfpatch.objectives.moco_v3 import MoCoV3
from selfpatch.objectives.neco import NeCo
from selfpatch.objectives.objective import Objective
from selfpatch.objectives.selfpatch import SelfPatch

OBJECTIVES = {
    "dino": DINO,
    "selfpatch": SelfPatch,
    "ibot": IBOT,
    "moco_v3": MoCoV3,
    "moby": MoBY,
    "koleo": KoLeo,
    "gram": Gram,
    "neco": NeCo,
}


def build_objectives(config: ObjectivesConfig, dim: int, *, steps_per_epoch: int) -> dict[str, Objective]:
    """The objectives that are set, for tokens of width `dim`."""
    built: dict[str, Objective] = {}
    for name, settings in config.given().items():
        shares = isinstance(settings, PatchConfig) and settings.head is None
        shared = {"shared": built["dino"].branch} if shares else {}
        built[name] = OBJECTIVES[name](dim, settings, steps_per_epoch=steps_per_epoch, **shared)
    return built
