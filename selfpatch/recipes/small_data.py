"""DINO alone, with SelfPatch, iBOT or NeCo, for hundreds to a hundred thousand images, on one GPU or a CPU."""

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
    SelfDistillationConfig,
    SelfPatchConfig,
    TeacherConfig,
)
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.config.objectives.neco import NeCoConfig


def dino_selfpatch_small() -> PretrainConfig:
    """DINO + SelfPatch on few images: size, length and speed derived from their number and the hardware (derive.py).

    When: up to 100,000 images, one GPU or a CPU, and you want SelfPatch; compare with dino-small.
    Command: selfpatch pretrain IMAGES OUT --recipe dino-selfpatch-small
    Hardware: one GPU, or a CPU with a smaller network and crops.
    Expected: on the demo's scenes in-context mIoU rises from the first hundred steps on (README). No result on a real
    data set yet.

    The authors' settings stall on few images and short runs: the loss stays at ln K or falls onto one prototype, and
    the patches get worse than random ones (docs/tried.md). What is different here, each for that reason: targets are
    spread over the prototypes by Sinkhorn, heads are batch-normalised, the prototypes stay as they were drawn, and the
    teacher is slow and sharp, so that learning begins with stable targets that cannot collapse. Colours are shifted
    all around the wheel, so that patches are told apart by what they show; borders are clipped, and only the global
    crops carry the patch loss, so that no positive comes from the opposite side. Its targets come from the crop with
    colors drawn anew, and it begins after four tenths of the run: with the authors' switches the patches learn their
    colors and get worse (docs/evidence.md).
    """
    head = HeadConfig(
        num_prototypes=None, hidden_dim=256, bottleneck_dim=64, batch_norm=True, freeze_prototypes_epochs="always"
    )
    distillation = SelfDistillationConfig(
        teacher_temperature=0.015, warmup_teacher_temperature=0.015, centering="sinkhorn"
    )
    patch_level = SelfPatchConfig(
        weight=0.1, head=head, distillation=distillation, num_positives=3, padding_mode="none", crops="global",
        view="recolored", start_epoch=None, ramp_epochs=None,
    )  # fmt: skip
    return PretrainConfig(
        recipe="dino-selfpatch-small",
        backbone=BackboneConfig(name=None, class_token=False, final_norm=False, drop_path=0.0),
        aggregator=AggregatorConfig(num_blocks=1),
        crops=CropsConfig(
            global_size=None,
            global_scale=(0.4, 1.0),
            local_size=None,
            num_local=4,
            local_scale=(0.2, 0.5),
            color_jitter=(0.4, 0.4, 0.4, 0.5),
            grayscale_prob=0.5,
            blur_prob=(0.0, 0.0, 0.0),
            solarize_prob=0.0,
        ),
        objectives=ObjectivesConfig(
            dino=DINOConfig(head=head, distillation=distillation),
            selfpatch=patch_level,
        ),
        optim=OptimConfig(
            batch_size=None,
            lr=None,
            lr_scaling="none",
            min_lr=1e-5,
            epochs=None,
            warmup_epochs=None,
            weight_decay_end=0.04,
            clip_norm=1.0,
            clip_mode="global",
        ),
        teacher=TeacherConfig(momentum=None),
    )


def dino_small() -> PretrainConfig:
    """DINO on few images: `dino-selfpatch-small` without SelfPatch, to compare with.

    When: up to 100,000 images, one GPU or a CPU: the first run on images of your own.
    Command: selfpatch pretrain IMAGES OUT --recipe dino-small
    """
    config = dino_selfpatch_small()
    return replace(config, recipe="dino-small", objectives=replace(config.objectives, selfpatch=None))


def dino_ibot_small() -> PretrainConfig:
    """DINO + iBOT on few images: `dino-small`, and masked patches that predict the teacher's patches.

    When: as dino-small, and dense tasks (segmentation) are the aim: masked patches besides.
    Command: selfpatch pretrain IMAGES OUT --recipe dino-ibot-small
    Hardware: one GPU, or a CPU with a smaller network and crops.
    Expected: no result on a real data set yet.

    Targets, heads and teacher are those of `dino-selfpatch-small`, for the same reasons. The patches have a head of
    their own, as in DINOv2, and Sinkhorn spreads the masked ones over its prototypes. The weight is that of SelfPatch:
    with iBOT's weight of 1 a short run made the patches worse (docs/tried.md).
    """
    config = dino_small()
    assert config.objectives.dino is not None
    image_level = config.objectives.dino
    patch_level = IBOTConfig(weight=0.1, head=image_level.head, distillation=image_level.distillation)
    return replace(config, recipe="dino-ibot-small", objectives=replace(config.objectives, ibot=patch_level))


def dino_neco_small() -> PretrainConfig:
    """DINO + NeCo on few images: `dino-small`, and patches that agree with the teacher's on who their neighbors are.

    When: as dino-small, and patches shall agree on their neighbors; published for pretrained networks alone.
    Command: selfpatch pretrain IMAGES OUT --recipe dino-neco-small
    Hardware: one GPU, or a CPU with a smaller network and crops.
    Expected: no result on a real data set yet. Its authors train no network from scratch with it but pretrained ones.

    Crops, targets and teacher are those of `dino-small`. The weight is that of its siblings. Overlaps are brought to
    4 x 4 places instead of 7 x 7: crops are smaller here, and sorting costs a fiftieth.
    """
    config = dino_small()
    neco = NeCoConfig(weight=0.1, overlap_size=4, hidden_dim=256, output_dim=64)
    return replace(config, recipe="dino-neco-small", objectives=replace(config.objectives, neco=neco))
