"""Recipes that continue weights of others (--init-from) on new images; heads alone start anew."""

from collections.abc import Callable
from dataclasses import replace

from selfpatch.config import AggregatorConfig, BackboneConfig, CropsConfig, PretrainConfig
from selfpatch.recipes.small_data import dino_neco_small, dino_selfpatch_small, dino_small


def continue_dino() -> PretrainConfig:
    """DINO from public weights: the backbone is that of the weights, whatever it is.

    When: public weights to be continued by DINO alone (--init-from).
    Command: selfpatch pretrain IMAGES OUT --recipe continue-dino --init-from MODEL
    Hardware: one GPU, or a CPU with smaller crops; from 500 images on, size and length are derived (derive.py).
    Expected: no result on a real data set yet.

    Patches, positions, class token, registers and normalization are those of the weights. Targets and heads are those
    of `dino-small`, which learn in short runs. Crops are DINO's, as most public weights were trained with them. New
    heads learn alone at first; then the backbone follows at a low rate, its low layers at a lower one, and the teacher,
    which starts as the student, follows slowly. Layer decay 0.75 as in fine-tuning MAE and BEiT.
    """
    config = dino_small()
    return replace(
        config,
        recipe="continue-dino",
        backbone=BackboneConfig(name=None, final_norm=None, drop_path=0.0),
        aggregator=AggregatorConfig(image_token=None),
        crops=CropsConfig(global_size=None, local_size=None, num_local=4),
        optim=replace(config.optim, min_lr=1e-6, layer_decay=0.75, freeze_backbone_epochs=None),
    )


def continue_selfpatch() -> PretrainConfig:
    """DINO + SelfPatch from public weights: `continue-dino`, and every patch predicts its most similar neighbors.

    When: public weights to be continued with SelfPatch (--init-from).
    Command: selfpatch pretrain IMAGES OUT --recipe continue-selfpatch --init-from MODEL
    Hardware: as `continue-dino`, and the aggregator, which starts anew unless the weights have one.
    Expected: no result on a real data set yet.

    The image token comes from the aggregator, so that DINO trains it. Weight and positives are those of
    `dino-selfpatch-small`; targets are of the same view, from the first step on: nothing else has been measured here.
    """
    config = continue_dino()
    patch_level = dino_selfpatch_small().objectives.selfpatch
    assert patch_level is not None
    patch_level = replace(patch_level, view="same", start_epoch=0.0, ramp_epochs=0.0)
    return replace(config, recipe="continue-selfpatch", objectives=replace(config.objectives, selfpatch=patch_level))


def continue_neco() -> PretrainConfig:
    """DINO + NeCo from public weights: `continue-dino`, and patches agree on the order of their neighbors.

    When: public weights to be continued, patches to agree on their neighbors (--init-from).
    Command: selfpatch pretrain IMAGES OUT --recipe continue-neco --init-from MODEL
    Hardware: as `continue-dino`.
    Expected: no result on a real data set yet.

    NeCo as in `dino-neco-small`; its authors have no DINO beside it.
    """
    config = continue_dino()
    objectives = replace(config.objectives, neco=dino_neco_small().objectives.neco)
    return replace(config, recipe="continue-neco", objectives=objectives)


def continue_weights() -> PretrainConfig:
    """The recipe for continuing public weights: `continue-dino` today.

    When: public weights to be continued on your images (--init-from): the one to begin with.
    Command: selfpatch pretrain IMAGES OUT --recipe continue --init-from MODEL
    """
    return replace(continue_dino(), recipe="continue")


# They make no sense without weights.
CONTINUE_RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "continue": continue_weights,
    "continue-dino": continue_dino,
    "continue-selfpatch": continue_selfpatch,
    "continue-neco": continue_neco,
}
