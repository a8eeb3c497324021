"""Every setting of a pretraining run, grouped by what it may change. Imports no torch, so that `--help` is quick.

*Method* (backbone, aggregator, crops, objectives, optim, teacher, seed) changes results and must be the same when a run
goes on; *efficiency* must not change results; *run* and *evaluate* (paths, logging, scores on the way) cannot.

`None` where a number is expected means "derive it": a recipe says from what (see recipes/small_data.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfpatch.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check(condition: bool, message: str) -> None:
    """A setting's range, checked when it is made; the message says what came, what is allowed and what to do."""
    if not condition:
        raise UserError(message)


def rows_columns(size: int | tuple[int, int] | None) -> tuple[int, int]:
    """An image size in pixels as (rows, columns)."""
    assert size is not None  # derived by now
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class BackboneConfig:
    """Which vision transformer is trained: a timm name, and what is changed of it."""

    # timm's name of a vision transformer; None: derived
    name: str | None = "vit_small_patch16_224"
    # side of a patch in pixels; None: the model's own
    patch_size: int | None = None
    # width; None: the model's own
    embed_dim: int | None = None
    # number of blocks; None: the model's own
    depth: int | None = None
    # attention heads of a block; None: the model's own
    num_heads: int | None = None
    # whether there is a class token; None: the model's own
    class_token: bool | None = None
    # whether the backbone ends in its own norm; the authors' run leaves it to the aggregator
    final_norm: bool = True
    # stochastic depth of the student, in [0, 1)
    drop_path: float = 0.1
    # how position embeddings follow the image size: as timm does it or as DINO's code does
    pos_embed_interpolation: Literal["timm", "dino"] = "timm"

    def __post_init__(self):
        check(0 <= self.drop_path < 1, f"backbone.drop-path is {self.drop_path}; it is a probability in [0, 1)")
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            check(value is None or value > 0, f"backbone.{name.replace('_', '-')} is {value}; it must be positive")


@dataclass(frozen=True)
class AggregatorConfig:
    """The class-attention blocks that summarise a set of patches into one token."""

    # class-attention blocks
    num_blocks: int = 2
    # attention heads of a block; None: as many as the backbone has
    num_heads: int | None = None
    # width of a block's MLP, in widths of the backbone
    mlp_ratio: float = 4.0
    # where the image token comes from: the aggregator over all patches (as upstream), or the backbone's class token
    image_token: Literal["aggregator", "class_token"] = "aggregator"

    def __post_init__(self):
        check(self.num_blocks > 0, f"aggregator.num-blocks is {self.num_blocks}; at least 1 is needed")


@dataclass(frozen=True)
class CropsConfig:
    """DINO's multi-crop augmentation. Sizes are pixels (a number, or rows and columns); scales, shares of the area."""

    # side of the global crops, which the teacher sees; None: derived
    global_size: int | tuple[int, int] | None = 224
    # how many of them
    num_global: int = 2
    # their share of the image's area
    global_scale: tuple[float, float] = (0.25, 1.0)
    # side of the local crops; None: derived
    local_size: int | tuple[int, int] | None = 96
    # how many of them
    num_local: int = 8
    # their share of the image's area
    local_scale: tuple[float, float] = (0.05, 0.25)
    # of a mirror image
    hflip_prob: float = 0.5
    # brightness, contrast, saturation, hue: half-widths of the factors' ranges
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    # of colour jitter
    jitter_prob: float = 0.8
    # of a grey crop
    grayscale_prob: float = 0.2
    # probability on the first global crop, on the other global crops, on the local crops
    blur_prob: tuple[float, float, float] = (1.0, 0.1, 0.5)
    # standard deviation of the Gaussian in pixels, uniform between the two
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    # on the global crops but the first
    solarize_prob: float = 0.2
    # what crops are normalised with, of values in [0, 1]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    # likewise
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        check(
            self.num_global >= 2, f"crops.num-global is {self.num_global}; views of one image are compared: 2 or more"
        )
        check(self.num_local >= 0, f"crops.num-local is {self.num_local}; it cannot be negative")
        for name in ("hflip_prob", "jitter_prob", "grayscale_prob", "solarize_prob"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"crops.{name.replace('_', '-')} is {value}; it is a probability in [0, 1]")
        check(min(self.std) > 0, f"crops.std is {self.std}; each must be above 0")
        check(min(self.jitter) >= 0, f"crops.jitter is {self.jitter}; half-widths cannot be negative")
        check(all(0 <= p <= 1 for p in self.blur_prob), f"crops.blur-prob is {self.blur_prob}; each is in [0, 1]")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            check(
                0 < low <= high <= 1,
                f"crops.{name.replace('_', '-')} is ({low}, {high}); 0 < low <= high <= 1 is needed",
            )
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            check(
                size is None or min(rows_columns(size)) > 0,
                f"crops.{name.replace('_', '-')} is {size}; it must be positive",
            )
        if self.num_local and self.global_size is not None and self.local_size is not None:
            (rows, columns), (local_rows, local_columns) = rows_columns(self.global_size), rows_columns(self.local_size)
            check(
                local_rows < rows and local_columns < columns,
                f"crops.local-size {self.local_size} is not smaller than crops.global-size {self.global_size}; local "
                "crops are parts seen by the student alone: make them smaller, or leave them out (crops.num-local 0)",
            )


@dataclass(frozen=True)
class HeadConfig:
    """DINO's projection head: an MLP, an L2 norm and a linear layer to the prototypes with weights of fixed norm."""

    # K, the width of the output; None: derived
    num_prototypes: int | None = 65536
    # width of the MLP
    hidden_dim: int = 2048
    # width before the prototypes
    bottleneck_dim: int = 256
    # whether hidden layers are batch-normalised (DINO's use_bn_in_head): keeps short runs from stalling at ln K
    batch_norm: bool = False
    # keep the norm of every prototype at 1
    fix_prototype_norm: bool = True
    # epochs in which the prototypes stay as they are
    freeze_prototypes_epochs: int = 1

    def __post_init__(self):
        for name in ("num_prototypes", "hidden_dim", "bottleneck_dim"):
            value = getattr(self, name)
            check(value is None or value > 0, f"head.{name.replace('_', '-')} is {value}; it must be positive")


@dataclass(frozen=True)
class SelfDistillationConfig:
    """What turns logits into targets and predictions. Temperatures of a softmax, > 0; lower is sharper."""

    # of the student's softmax
    student_temperature: float = 0.1
    # of the teacher's softmax, after its warm-up
    teacher_temperature: float = 0.04
    # of the teacher's softmax at the start
    warmup_teacher_temperature: float = 0.04
    # how many epochs it takes from there
    warmup_epochs: int = 0
    # what keeps targets apart: a moving mean of the teacher's logits is taken off ("mean", as DINO), or every batch is
    # spread evenly over the prototypes ("sinkhorn", as SwAV and DINOv2), which small batches and short runs need
    centering: Literal["mean", "sinkhorn"] = "mean"
    # the moving mean keeps this share of itself at every step
    center_momentum: float = 0.9

    def __post_init__(self):
        for name in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            check(getattr(self, name) > 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        check(0 <= self.center_momentum < 1, f"center-momentum is {self.center_momentum}; it must be in [0, 1)")


@dataclass(frozen=True)
class DINOConfig:
    """Image-level term: every crop predicts the teacher's view of the global crops."""

    # factor of this term in the loss
    weight: float = 1.0
    # image tokens to prototypes
    head: HeadConfig = HeadConfig()
    # targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig()
    # which crops of the teacher move the centre: DINO's code has the global ones, SelfPatch's all of them
    center_crops: Literal["global", "all"] = "global"


@dataclass(frozen=True)
class SelfPatchConfig:
    """Patch-level term: each patch predicts the aggregate of its most similar neighbours."""

    # factor of this term in the loss
    weight: float = 0.1
    # patch tokens to prototypes
    head: HeadConfig = HeadConfig(num_prototypes=4096)
    # targets and predictions
    distillation: SelfDistillationConfig = SelfDistillationConfig()
    # side of the square neighbourhood in patches, odd; 3 means 8 neighbours
    window_size: int = 3
    # k, how many of the neighbours are aggregated
    num_positives: int = 4
    # beyond the image's border: neighbours of the opposite side (as the authors' code) or none (as the paper's text)
    borders: Literal["wrap", "clip"] = "wrap"
    # which crops carry the loss; with "global" the teacher never sees a local crop
    crops: Literal["all", "global"] = "all"

    def __post_init__(self):
        check(
            self.window_size > 1 and self.window_size % 2 == 1,
            f"selfpatch.window-size is {self.window_size}; an odd number of at least 3 has a centre and neighbours",
        )
        inside = (self.window_size // 2 + 1) ** 2 - 1 if self.borders == "clip" else self.window_size**2 - 1
        check(
            1 <= self.num_positives <= inside,
            f"selfpatch.num-positives is {self.num_positives}; with window-size {self.window_size} and borders "
            f"{self.borders!r} every patch has {inside} neighbours: choose 1 to {inside}, or a larger window",
        )


@dataclass(frozen=True)
class ObjectivesConfig:
    """The terms of the loss; a term that is None is not there. Their weighted sum is minimised."""

    dino: DINOConfig | None = DINOConfig()
    selfpatch: SelfPatchConfig | None = None

    def __post_init__(self):
        check(self.dino is not None or self.selfpatch is not None, "objectives has no term; give at least one")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules."""

    # images per optimizer step, over all devices and accumulated parts; None: derived; "auto": the largest power of two
    # that fits into memory with a fifth to spare, four batches an epoch, at most 1024
    batch_size: Literal["auto"] | int | None = 1024
    # parts a batch is cut into, one after another on the device: the same step with less memory, but for Sinkhorn and
    # batch norm in heads, which see one part at a time
    accumulate: int = 1
    # peak learning rate for 256 images a batch; None: derived
    lr: float | None = 5e-4
    # how the learning rate follows the batch size
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    # learning rate at the end
    min_lr: float = 1e-6
    # passes over the images; None: derived
    epochs: float | None = 300
    # optimizer steps, instead of epochs
    steps: int | None = None
    # epochs in which the learning rate rises; None: derived
    warmup_epochs: float | None = 10
    # at the start; none on biases and 1-D tensors
    weight_decay: float = 0.04
    # at the end
    weight_decay_end: float = 0.4
    # largest norm of a gradient; 0 leaves gradients alone
    clip_norm: float = 3.0
    # whether that is the norm of each tensor (as DINO) or of all of them together
    clip: Literal["parameter", "global"] = "parameter"

    def __post_init__(self):
        for name in ("batch_size", "lr", "epochs", "steps"):
            value = getattr(self, name)
            check(
                value in (None, "auto") or value > 0, f"optim.{name.replace('_', '-')} is {value}; it must be above 0"
            )
        for name in ("min_lr", "weight_decay", "weight_decay_end", "clip_norm"):
            check(
                getattr(self, name) >= 0,
                f"optim.{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative",
            )
        check(
            self.warmup_epochs is None or self.warmup_epochs >= 0,
            f"optim.warmup-epochs is {self.warmup_epochs}; it cannot be negative",
        )
        check(self.accumulate > 0, f"optim.accumulate is {self.accumulate}; it must be at least 1")
        if isinstance(self.batch_size, int):
            check(
                self.batch_size % self.accumulate == 0,
                f"optim.batch-size {self.batch_size} cannot be cut into {self.accumulate} equal parts; choose a "
                "divisor for optim.accumulate",
            )


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher follows the student by an exponential moving average."""

    # share the teacher keeps of itself at the first step, in [0, 1]; by a cosine to momentum_end; None: derived
    momentum: float | None = 0.996
    # share at the last step
    momentum_end: float = 1.0

    def __post_init__(self):
        for name in ("momentum", "momentum_end"):
            value = getattr(self, name)
            check(
                value is None or 0 <= value <= 1, f"teacher.{name.replace('_', '-')} is {value}; it must be in [0, 1]"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores while it trains: in-context segmentation with the teacher's patches."""

    # ADE20K layout, or images/ + masks/; None: no scores
    data: Path | None = None
    # None: ten times in the run
    every_steps: int | None = None
    # short side of the images in pixels; None: twice the global crop
    image_size: int | None = None
    # patches kept in memory
    memory_size: int = 10_240
    # patches in memory that vote on a patch
    num_neighbors: int = 30
    # at most so many images of each split
    max_images: int = 200

    def __post_init__(self):
        for name in ("every_steps", "image_size", "memory_size", "max_images"):
            value = getattr(self, name)
            check(value is None or value > 0, f"evaluate.{name.replace('_', '-')} is {value}; it must be above 0")


@dataclass(frozen=True)
class EfficiencyConfig:
    """What makes it fast; results stay as they are."""

    # "auto": bf16 on a GPU that has it, else float32
    precision: Literal["auto", "float32", "bf16"] = "auto"
    # processes that read and crop; None: as many as cores, at most 16; 0: none
    num_workers: int | None = None
    # activations that the backward pass recomputes instead of keeping. "selective": outputs of norms and activation
    # functions in the student's blocks; saves a third of the memory (in bf16 a fifth) for next to no time, and compiled
    # blocks do so anyway. "full": all but the input of each block; saves three quarters, costs a tenth to a fifth
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    # compile the blocks of student and teacher by torch.compile, one graph a crop size: the first steps take minutes,
    # a GPU is then used better. It needs a C++ compiler, on a GPU Triton
    compile: bool = False
    # where crops are flipped, their colours changed and blurred: by the processes that read and crop, or in batches on
    # the device; "auto": on the device if it is a GPU. The same changes, within rounding
    light: Literal["auto", "workers", "device"] = "auto"

    def __post_init__(self):
        check(
            self.num_workers is None or self.num_workers >= 0,
            f"efficiency.num-workers is {self.num_workers}; 0 reads images in the training process, more in others",
        )


@dataclass(frozen=True)
class RunConfig:
    """Where it runs and what it writes."""

    # "auto": the GPU if there is one, else the CPU; or as torch names it: cpu, cuda, cuda:1, mps
    device: str = "auto"
    # steps between lines of the log
    log_every: int = 10
    # steps between checkpoints; None: ten in the run, at most every 1,000 steps
    save_every: int | None = None
    # how many checkpoints are kept
    keep: int = 3
    # stop when more than this share of the images cannot be read
    max_bad_fraction: float = 0.2
    # stop after so many steps in a row without a finite loss and gradient
    max_skipped: int = 20
    # stop here and save, as a signal would; the schedules do not change
    stop_at_step: int | None = None

    def __post_init__(self):
        for name in ("log_every", "save_every", "max_skipped", "stop_at_step"):
            value = getattr(self, name)
            check(value is None or value > 0, f"run.{name.replace('_', '-')} is {value}; it must be at least 1")
        check(self.keep > 0, f"run.keep is {self.keep}; at least one checkpoint has to stay")
        check(
            0 <= self.max_bad_fraction <= 1,
            f"run.max-bad-fraction is {self.max_bad_fraction}; it is a share of the images, in [0, 1]",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """Everything about one pretraining run but its two folders."""

    # where the settings come from
    recipe: str = "dino-selfpatch"

    backbone: BackboneConfig = BackboneConfig()
    aggregator: AggregatorConfig | None = None
    crops: CropsConfig = CropsConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    optim: OptimConfig = OptimConfig()
    teacher: TeacherConfig = TeacherConfig()
    # all random numbers follow from it
    seed: int = 0

    evaluate: EvaluateConfig = EvaluateConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        check(0 <= self.seed < 2**31, f"seed is {self.seed}; it must be 0 or more, and below 2^31")
        check(
            self.objectives.selfpatch is None or self.aggregator is not None,
            "objectives.selfpatch needs an aggregator to summarise neighbours; start from a recipe with selfpatch in "
            "its name",
        )


RESULT_AFFECTING = ("backbone", "aggregator", "crops", "objectives", "optim", "teacher", "seed")
