"""Settings that leave results as they are: scores on the way, speed and memory, logging and saving."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from selfpatch.config.images import ShownChannels
from selfpatch.config.ranges import Config, NonNegative, Positive, UnitInterval


@dataclass(frozen=True)
class EvaluateConfig(Config, group="evaluate"):
    """Scores during training: in-context segmentation with the teacher's patch tokens."""

    # labeled images for scores during training: ADE20K layout, or images/ and masks/; None: no scores
    data: Path | None = None
    # score also when validation images are among the images to train on
    allow_overlap: bool = False
    # steps between scores and between pictures; None: ten times in the run, at most every ten steps
    every_steps: Annotated[int | None, Positive] = None
    # short side in pixels of images that are scored or drawn; None: twice the global crop
    image_size: Annotated[int | None, Positive] = None
    # channels that pictures show as red, green and blue, counted from 0; None: the first three
    shown_channels: ShownChannels = None
    # number of labeled patches kept in the memory bank
    memory_size: Annotated[int, Positive] = 10_240
    # k: number of nearest patches in the memory bank that vote on the label of a patch
    num_neighbors: Annotated[int, Positive] = 30
    # largest number of labeled images read from each split
    max_images: Annotated[int, Positive] = 200


@dataclass(frozen=True)
class EfficiencyConfig(Config, group="efficiency"):
    """Speed and memory; results stay as they are."""

    # training precision; "auto": bf16 on a GPU that has it and on a CPU with AMX or AVX512-BF16, else float32; a run
    # that goes on keeps its own
    precision: Literal["auto", "float32", "bf16"] = "auto"
    # number of data loading processes, of each training process; None: one per core that falls to it, at most 16; 0:
    # load in the training process
    num_workers: Annotated[int | None, NonNegative] = None
    # activations that the backward pass recomputes instead of keeping: "selective": outputs of norms and activation
    # functions in the student's blocks, a third of the memory (in bf16 a fifth) for next to no time, and compiled
    # blocks do so anyway; "full": all but the input of each block, three quarters for 10 to 20 % more time
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    # compile the blocks of student and teacher with torch.compile, one graph per crop size: slow first steps, then
    # better use of a GPU. Needs a C++ compiler, and Triton on a GPU
    compile: bool = False
    # place of flips, color changes and blur: data loading workers, or batched on the device; "auto": on the device if
    # it is a GPU. Same augmentation, up to rounding
    color_augmentation: Literal["auto", "worker", "device"] = "auto"
    # division of the work over several processes (--devices): "ddp": each holds the whole model; "fsdp2": weights,
    # gradients, optimizer and teacher are sharded, for models that do not fit on one device
    parallel: Literal["ddp", "fsdp2"] = "ddp"


@dataclass(frozen=True)
class RunConfig(Config, group="run"):
    """Device, logging, checkpoints, and when to stop early."""

    # torch device to train on: cpu, cuda, cuda:1, mps; "auto": the GPU if there is one, else the CPU. Of several
    # processes each takes a GPU of its own
    device: str = "auto"
    # steps between lines of the log
    log_every: Annotated[int, Positive] = 10
    # steps between checkpoints; None: ten in the run, at most every 1,000 steps
    save_every: Annotated[int | None, Positive] = None
    # number of newest checkpoints that are kept
    max_to_keep: Annotated[int, Positive] = 3
    # number of best checkpoints that are kept besides; 0: none; None: 1, where the run has the metric to rank them by
    keep_best: Annotated[int | None, NonNegative] = None
    # metric of the log that ranks checkpoints: in_context/mIoU, in_context/mAcc, in_context/aAcc, or a loss (lower is
    # better): loss, dino/loss, ...
    keep_best_by: str = "in_context/mIoU"
    # stop when more than this fraction of the images cannot be read
    max_bad_fraction: Annotated[float, UnitInterval] = 0.2
    # go on although the images are not those that the run began with: others, fewer, or of other contents
    allow_other_images: bool = False
    # stop after this many steps in a row whose loss or gradient is not finite
    max_skipped: Annotated[int, Positive] = 20
    # stop and save when training has collapsed (docs/health.md), as a signal would
    stop_on_collapse: bool = False
    # stop and save after this step, as a signal would; schedules do not change
    stop_at_step: Annotated[int | None, Positive] = None
    # seconds that a process of several waits for the others, to meet and in a step, before the run fails
    rank_timeout_s: Annotated[int, Positive] = 600
