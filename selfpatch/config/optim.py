"""Settings of the optimizer, its schedules, and the teacher that follows the student."""

from dataclasses import dataclass
from typing import Annotated, Literal

from selfpatch.config.ranges import Config, Fraction, NonNegative, Positive, UnitInterval


@dataclass(frozen=True)
class OptimConfig(Config, group="optim"):
    """AdamW and its schedules."""

    # images per optimizer step, over all devices and accumulated parts; None: derived; "auto": the largest power of two
    # that fits into memory with a fifth to spare, at most 1024, and at least four batches per epoch
    batch_size: Annotated[Literal["auto"] | int | None, Positive] = 1024
    # gradient accumulation: number of parts of a batch that run one after another, for less memory; results stay the
    # same, except with Sinkhorn or batch norm in heads, which see one part at a time
    accumulate: Annotated[int, Positive] = 1
    # peak learning rate for a batch of 256 images; None: derived
    lr: Annotated[float | None, Positive] = 5e-4
    # scaling of the learning rate with the batch size
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    # learning rate at the end of training
    min_lr: Annotated[float, NonNegative] = 1e-6
    # number of passes over the images; None: derived
    epochs: Annotated[float | None, Positive] = 300
    # number of optimizer steps, instead of epochs; None: as many as the epochs have
    steps: Annotated[int | None, Positive] = None
    # epochs of linear warm-up of the learning rate; None: derived
    warmup_epochs: Annotated[float | None, NonNegative] = 10
    # weight decay at the start of training; none on biases and 1-D tensors
    weight_decay: Annotated[float, NonNegative] = 0.04
    # weight decay at the end of training
    weight_decay_end: Annotated[float, NonNegative] = 0.4
    # largest gradient norm, larger ones are scaled down; 0: no clipping
    clip_norm: Annotated[float, NonNegative] = 3.0
    # gradient norm that is clipped: of each parameter by itself (as DINO), or the global norm of all of them
    clip_mode: Literal["parameter", "global"] = "parameter"
    # learning rate of each layer of the backbone as a fraction of that of the next one, by timm's grouping; the last
    # block, aggregator and heads have the whole; None: all have the whole
    layer_decay: Annotated[float | None, Fraction] = None
    # epochs at the start in which the backbone rests, so that new heads do not disturb it; then its learning rate rises
    # in as many steps as the warm-up has; None: derived
    freeze_backbone_epochs: Annotated[float | None, NonNegative] = 0.0
    # number of last blocks of the backbone that train, with the final norm; None: the whole backbone trains
    trainable_blocks: Annotated[int | None, Positive] = None

    def __post_init__(self):
        super().__post_init__()
        self.require(
            not isinstance(self.batch_size, int) or self.batch_size % self.accumulate == 0,
            "batch_size",
            f"it cannot be cut into {self.accumulate} equal parts; choose a divisor of it for accumulate",
        )


@dataclass(frozen=True)
class TeacherConfig(Config, group="teacher"):
    """Exponential moving average by which the teacher follows the student."""

    # momentum of the moving average at the first step, rising to momentum-end by a cosine; None: derived
    momentum: Annotated[float | None, UnitInterval] = 0.996
    # momentum of the moving average at the last step
    momentum_end: Annotated[float, UnitInterval] = 1.0
