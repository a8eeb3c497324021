"""A tiny student and teacher, for tests of everything that trains."""

from dataclasses import replace

import torch

from selfpatch.backbones.build import build_backbone
from selfpatch.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AggregatorConfig,
    BackboneConfig,
    CropsConfig,
    DINOConfig,
    HeadConfig,
    ObjectivesConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SelfPatchConfig,
    TeacherConfig,
)
from selfpatch.pretraining.student_teacher import StudentTeacher, build_student_teacher

HEAD = HeadConfig(num_prototypes=24, hidden_dim=32, bottleneck_dim=16, freeze_prototypes_epochs=0)


def tiny_config(**changes) -> PretrainConfig:
    """DINO + SelfPatch on 32-px crops of 8-px patches, in milliseconds a step."""
    config = PretrainConfig(
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, class_token=False,
            final_norm=False, drop_path=0.2,
        ),
        aggregator=AggregatorConfig(),
        crops=CropsConfig(global_size=32, local_size=24, num_local=2),
        objectives=ObjectivesConfig(
            dino=DINOConfig(head=HEAD, center_crops="all"), selfpatch=SelfPatchConfig(head=HEAD)
        ),
        optim=OptimConfig(batch_size=4, lr=1e-3, lr_scaling="none", epochs=2, warmup_epochs=0.5),
        teacher=TeacherConfig(momentum=0.9),
        run=RunConfig(device="cpu", log_every=1),
    )  # fmt: skip
    return replace(config, **changes)


def tiny_student_teacher(config: PretrainConfig, *, steps_per_epoch: int = 4, seed: int = 0) -> StudentTeacher:
    torch.manual_seed(seed)
    return build_student_teacher(
        build_backbone(config.backbone, (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        config,
        steps_per_epoch=steps_per_epoch,
    )


def random_crops(config: PretrainConfig, *, batch_size: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    crops = config.crops
    return (
        torch.randn(crops.num_global, batch_size, 3, crops.global_size, crops.global_size, generator=generator),
        torch.randn(crops.num_local, batch_size, 3, crops.local_size, crops.local_size, generator=generator),
    )
