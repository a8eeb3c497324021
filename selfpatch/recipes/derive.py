"""Settings that follow from the images and the hardware, each with the reason that is printed before a run."""

import math
from typing import Any, NamedTuple

from selfpatch.config import PretrainConfig, rows_columns
from selfpatch.config.io import override
from selfpatch.recipes.continue_from import CONTINUE_RECIPES


class RunFacts(NamedTuple):
    """Facts about a run that are known before it starts."""

    num_images: int
    on_gpu: bool
    patch_size: int  # of the backbone; crops are multiples of it
    embed_dim: int  # of the backbone
    has_cls_token: bool = True  # the backbone


class ResolvedSetting(NamedTuple):
    """A derived setting with its reason."""

    setting: str
    value: Any
    reason: str


def default_backbone(*, on_gpu: bool) -> str:
    """The backbone of a run that names none."""
    return "vit_small_patch16_224" if on_gpu else "vit_tiny_patch16_224"


def derive(config: PretrainConfig, facts: RunFacts) -> tuple[PretrainConfig, list[ResolvedSetting]]:
    """Fill in what the configuration leaves at None. What was given stays, and what depends on it follows it."""
    derived: list[ResolvedSetting] = []

    def fill(setting: str, given: Any, value: Any, reason: str) -> Any:
        if given is not None:
            return given
        derived.append(ResolvedSetting(setting, value, reason))
        return value

    # 1. Size, by the hardware; what describes an image.
    hardware = "a GPU" if facts.on_gpu else "no GPU"
    in_patches = f"in whole patches of {facts.patch_size}"
    fill("backbone.name", config.backbone.name, default_backbone(on_gpu=facts.on_gpu), hardware)
    usual_size = 224 if facts.on_gpu else 96
    global_size = fill(
        "crops.global-size", config.crops.global_size, _whole_patches(usual_size, facts.patch_size, at_least=3),
        f"{hardware}, {in_patches}",
    )  # fmt: skip
    fill(
        "crops.local-size", config.crops.local_size,
        _whole_patches(3 / 7 * min(rows_columns(global_size)), facts.patch_size),
        f"three sevenths of the global crop, as DINO's 96 of 224, {in_patches}",
    )  # fmt: skip

    if config.aggregator is not None and config.aggregator.image_token is None:
        aggregates = any(objective.needs_aggregator for objective in config.objectives.given().values())
        if aggregates or not facts.has_cls_token:
            reason = "an objective needs the aggregator, which this trains" if aggregates else "there is no class token"
            fill("aggregator.image-token", None, "aggregator", reason)
        else:
            fill("aggregator", None, None, "none is needed: the class token describes an image")

    # 2. Batch and length, by the number of images.
    optim, continues = config.optim, config.recipe in CONTINUE_RECIPES
    largest = 256 if facts.on_gpu else 64
    quarter = 2 ** int(math.log2(max(facts.num_images / 4, 1)))
    batch_size = fill(
        "optim.batch-size", optim.batch_size, min(largest, quarter), f"{hardware}, and at least four batches per epoch"
    )
    steps_per_epoch = max(facts.num_images // batch_size, 1)
    num_steps = optim.steps
    if num_steps is None:
        shown = (2_000_000 if facts.on_gpu else 20_000) if continues else 20_000_000 if facts.on_gpu else 100_000
        at_most = 200 if continues else 800
        epochs = fill(
            "optim.epochs", optim.epochs, round(min(max(shown / facts.num_images, 1), at_most), 1),
            f"{hardware}: about {shown:,} images shown, none more than {at_most} times",
        )  # fmt: skip
        num_steps = max(round(epochs * steps_per_epoch), 1)

    # 3. What follows from batch and length.
    peak, how = (4e-4, "a fifth of training from scratch: 4e-4") if continues else (2e-3, "2e-3")
    fill(
        "optim.lr", optim.lr, peak * math.sqrt(batch_size / 64) * 96 / facts.embed_dim,
        f"{how} at 96 wide and 64 images per step; less the wider, more with the root of the batch",
    )  # fmt: skip
    fill(
        "optim.warmup-epochs", optim.warmup_epochs, round(0.1 * num_steps / steps_per_epoch, 3),
        f"a tenth of {num_steps} steps",
    )  # fmt: skip
    fill(
        "optim.freeze-backbone-epochs", optim.freeze_backbone_epochs,
        round(min(0.1 * num_steps, 1000) / steps_per_epoch, 3),
        f"a tenth of {num_steps} steps, at most 1,000: heads learn before the backbone moves",
    )  # fmt: skip
    horizon = min(max(num_steps / 4, 100), 1000) if continues else min(max(num_steps / 8, 100), 250)
    fill(
        "teacher.momentum", config.teacher.momentum, round(1 - 1 / horizon, 4),
        f"an average over the last {horizon:.0f} steps: slow enough to learn from, a small part of the run",
    )  # fmt: skip
    for objective, settings in config.objectives.given().items():
        if (head := getattr(settings, "head", None)) is not None:
            fill(
                f"objectives.{objective}.head.num-prototypes",
                head.num_prototypes,
                min(max(2 * batch_size, 64), 4096),
                "one for each global crop of a step, over which Sinkhorn spreads them",
            )
        for setting, part, reason in (
            ("start-epoch", 0.4, "four tenths of the run: neighbors teach something once patches mean something"),
            ("ramp-epochs", 0.2, "a fifth of the run"),
        ):
            if hasattr(settings, field := setting.replace("-", "_")):
                epochs = round(part * num_steps / steps_per_epoch, 3)
                fill(f"objectives.{objective}.{setting}", getattr(settings, field), epochs, reason)
    return override(config, {setting: value for setting, value, _ in derived}), derived


def _whole_patches(size: float, patch_size: int, *, at_least: int = 1) -> int:
    """The multiple of the patch size that is nearest to a size in pixels."""
    return max(round(size / patch_size), at_least) * patch_size
