"""Settings of a pretraining run, grouped by what they may change.

*Method* (images, backbone, aggregator, crops, objectives, optim, teacher, seed) changes results and must be the same
when a run goes on; *efficiency* must not change results; *run* and *evaluate* (paths, logging, scores on the way)
cannot.

`None` where a number is expected means "derived": a recipe says from what (see recipes/small_data.py).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.backbone import AggregatorConfig, BackboneConfig
from selfpatch.config.crops import CropsConfig
from selfpatch.config.images import ImagesConfig
from selfpatch.config.objectives import ObjectivesConfig
from selfpatch.config.optim import OptimConfig, TeacherConfig
from selfpatch.config.ranges import Config, Distinct, Seed
from selfpatch.config.run import EfficiencyConfig, EvaluateConfig, RunConfig


@dataclass(frozen=True)
class PretrainConfig(Config):
    """All settings of a pretraining run but its two folders."""

    # name of the recipe that the settings start from; `selfpatch --help` lists them
    recipe: str = "dino-selfpatch"

    images: ImagesConfig = ImagesConfig()
    backbone: BackboneConfig = BackboneConfig()
    aggregator: AggregatorConfig | None = None
    crops: CropsConfig = CropsConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    optim: OptimConfig = OptimConfig()
    teacher: TeacherConfig = TeacherConfig()
    # seed of all random numbers of the run
    seed: Annotated[int, Seed] = 0

    # programs that are given every number and picture of the run, besides metrics.jsonl (docs/trackers.md); several may
    # be given; none: nothing leaves the run's folder
    track: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Distinct] = ()

    evaluate: EvaluateConfig = EvaluateConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        super().__post_init__()
        waiting = [name for name, objective in self.objectives.given().items() if objective.needs_aggregator]
        self.require(
            self.aggregator is not None or not waiting,
            "aggregator",
            f"objectives.{waiting[0] if waiting else ''} needs one to summarize patches: start from a recipe that has "
            "an aggregator, or leave out that objective",
        )


RESULT_AFFECTING = ("images", "backbone", "aggregator", "crops", "objectives", "optim", "teacher", "seed")
