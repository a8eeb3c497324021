"""Every setting of a pretraining run, one file per group. Imports no torch, so that `--help` is quick."""

from selfpatch.config.backbone import AggregatorConfig, BackboneConfig
from selfpatch.config.crops import IMAGENET_MEAN, IMAGENET_STD, CropsConfig, rows_columns
from selfpatch.config.images import ImagesConfig
from selfpatch.config.objectives import ObjectivesConfig
from selfpatch.config.objectives.dino import DINOConfig
from selfpatch.config.objectives.projection_head import HeadConfig
from selfpatch.config.objectives.self_distillation import SelfDistillationConfig
from selfpatch.config.objectives.selfpatch import SelfPatchConfig
from selfpatch.config.optim import OptimConfig, TeacherConfig
from selfpatch.config.pixel_format import RGB_8, PixelFormat, pixel_format
from selfpatch.config.pretrain import RESULT_AFFECTING, PretrainConfig
from selfpatch.config.run import EfficiencyConfig, EvaluateConfig, RunConfig

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RESULT_AFFECTING",
    "RGB_8",
    "AggregatorConfig",
    "BackboneConfig",
    "CropsConfig",
    "DINOConfig",
    "EfficiencyConfig",
    "EvaluateConfig",
    "HeadConfig",
    "ImagesConfig",
    "ObjectivesConfig",
    "OptimConfig",
    "PixelFormat",
    "PretrainConfig",
    "RunConfig",
    "SelfDistillationConfig",
    "SelfPatchConfig",
    "TeacherConfig",
    "pixel_format",
    "rows_columns",
]
