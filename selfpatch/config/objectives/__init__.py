"""The objectives of a run. A new one is a file here, and a field below that is None by default."""

from dataclasses import dataclass, fields
from typing import get_type_hints

from selfpatch.config.objectives.dino import DINOConfig
from selfpatch.config.objectives.gram import GramConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.koleo import KoLeoConfig
from selfpatch.config.objectives.moby import MoBYConfig
from selfpatch.config.objectives.moco_v3 import MoCoV3Config
from selfpatch.config.objectives.neco import NeCoConfig
from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.config.objectives.patch import PatchConfig
from selfpatch.config.objectives.selfpatch import SelfPatchConfig
from selfpatch.config.ranges import Config
from selfpatch.config.values import options
from selfpatch.errors import UserError


@dataclass(frozen=True)
class ObjectivesConfig(Config, group="objectives"):
    """Objectives, whose weighted sum is the loss; one that is None is left out."""

    dino: DINOConfig | None = DINOConfig()
    selfpatch: SelfPatchConfig | None = None
    ibot: IBOTConfig | None = None
    moco_v3: MoCoV3Config | None = None
    moby: MoBYConfig | None = None
    koleo: KoLeoConfig | None = None
    gram: GramConfig | None = None
    neco: NeCoConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.given():
            names = ", ".join(field.name for field in fields(self))
            raise UserError(f"objectives has none that is set; give at least one of: {names}")
        patch_objectives = {name: config for name, config in self.given().items() if isinstance(config, PatchConfig)}
        masked = {name: config for name, config in patch_objectives.items() if config.masks}
        if len({config.masks for config in masked.values()}) > 1:
            names = " and ".join(f"objectives.{name}.masks" for name in masked)
            raise UserError(
                f"{names} differ, and all objectives see the same crops of the student; give them the same masks, or "
                "leave the masks out of all but one"
            )
        views = {config.view: name for name, config in patch_objectives.items()}
        if {"same", "recolored"} <= views.keys():
            raise UserError(
                f"objectives.{views['same']}.view is same and objectives.{views['recolored']}.view is recolored, and "
                "the teacher sees its crops in one set of colors; give both the same view"
            )
        for name, config in patch_objectives.items():
            if config.head is None and self.dino is None:
                raise UserError(
                    f"objectives.{name}.head is None: it would be that of objectives.dino, which is left out; give it "
                    "settings of its own, or use objectives.dino as well"
                )

    @classmethod
    def kinds(cls) -> dict[str, type[ObjectiveConfig]]:
        """The settings of every objective that there is, by name."""
        return {field.name: options(get_type_hints(cls)[field.name])[0] for field in fields(cls)}

    def given(self) -> dict[str, ObjectiveConfig]:
        """The objectives that are set, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: objective for name, objective in found.items() if objective is not None}
