"""DINO + SelfPatch for hundreds to a hundred thousand images, on one GPU or a CPU."""

from dataclasses import replace

from selfpatch.config import (
    AggregatorConfig,
    BackboneConfig,
    CropsConfig,
    DINOConfig,
    HeadConfig,
    ObjectivesConfig,
    OptimConfig,
    PretrainConfig,
    SelfPatchConfig,
    TeacherConfig,
)


def dino_selfpatch_small() -> PretrainConfig:
    """placeholder"""
    head = HeadConfig(num_prototypes=1024, hidden_dim=512, bottleneck_dim=128, freeze_prototypes_epochs=0)
    return PretrainConfig(
        recipe="dino-selfpatch-small",
        backbone=BackboneConfig(name="vit_small_patch16_224", class_token=False, final_norm=False, drop_path=0.0),
        aggregator=AggregatorConfig(),
        crops=CropsConfig(num_local=4),
        objectives=ObjectivesConfig(dino=DINOConfig(head=head), selfpatch=SelfPatchConfig(head=head, num_positives=3, borders="clip", crops="global")),
        optim=OptimConfig(batch_size=None, lr=None, lr_scaling="none", epochs=None, warmup_epochs=None),
        teacher=TeacherConfig(momentum=None),
    )


def dino_small() -> PretrainConfig:
    config = dino_selfpatch_small()
    return replace(config, recipe="dino-small", objectives=replace(config.objectives, selfpatch=None))
