"""Health of training: signals of tokens that every method has, and their meaning in words.

Docs: docs/health.md, with the runs, healthy and broken, that the thresholds come from.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfpatch.distributed import global_mean, world_size
from selfpatch.objectives.encoder import EncodedViews
from selfpatch.pretraining.views import Views

# Images of a batch that signals look at: enough for means, and below a hundredth of a step.
NUM_IMAGES = 32
# A patch token is an outlier if it is so many times as long as the median one [Vision transformers need registers].
OUTLIER_NORM = 4.0
# Lines of the log in a row that must agree before something is said.
NUM_LINES = 2


@torch.no_grad()
def token_signals(views: Views, teacher: EncodedViews) -> dict[str, Float[Tensor, ""]]:
    """Signals of the teacher's global crops, of all ranks as of one batch.

    `crops/std`: standard deviation of the pixels of a crop, 1 for usual images. `images/spread`: standard deviation of
    the image tokens' directions by channel, times the root of the width: 0 if all images have one token.
    `patches/similarity`: cosine of two patches of a crop, half of it apart; `patches/similarity_across`: of patches of
    different images at the same place. `patches/place`: the share of the patches' variance that place explains, beyond
    chance. `patches/norm_outliers`: the fraction of tokens of more than four times the median length of their rank.
    """
    crops = teacher.global_crops
    rows = slice(0, min(teacher.num_images, NUM_IMAGES))  # of the first crop
    patches, image_tokens = crops.tokens.patch_tokens[rows].float(), crops.image_token[rows].float()
    unit, directions = F.normalize(patches, dim=-1), F.normalize(image_tokens, dim=-1)
    lengths = patches.norm(dim=-1)
    num_images = len(patches) * world_size()
    centered = directions - global_mean(directions.mean(dim=0))
    scalars = {
        "crops/std": views.global_crops[0, rows].flatten(2).std(dim=-1).mean(),
        "images/spread": centered.square().mean(),
        "patches/similarity": (unit * unit.roll(unit.shape[1] // 2, dims=1)).sum(dim=-1).mean(),
        "patches/norm_outliers": (lengths > OUTLIER_NORM * lengths.median()).float().mean(),
    }
    means = global_mean(torch.stack(list(scalars.values())))
    found = dict(zip(scalars, means.unbind(), strict=True))
    found["images/spread"] = (image_tokens.shape[-1] * found["images/spread"]).sqrt()
    found["patches/place"] = place_share(patches)
    if num_images > 1:
        # The squared length of the mean holds every pair of images, each image with itself among them.
        all_pairs = global_mean(unit.mean(dim=0)).square().sum(dim=-1).mean()
        found["patches/similarity_across"] = (num_images * all_pairs - 1) / (num_images - 1)
    return found


def place_share(patches: Float[Tensor, "B N D"]) -> Float[Tensor, ""]:
    """Variance between places over all variance, less what it is by chance; 0 where nothing varies.

    The images of all ranks count as of one batch.
    """
    num_images, num_places = len(patches) * world_size(), patches.shape[1]
    if num_images == 1:
        return patches.new_zeros(())
    by_place = global_mean(patches.mean(dim=0))
    mean = by_place.mean(dim=0)
    total = global_mean((patches - mean).square().sum(dim=-1).mean())
    between = (by_place - mean).square().sum(dim=-1).mean()
    chance = (num_places - 1) / (num_images * num_places - 1)
    return (between / total.clamp(min=1e-12) - chance) / (1 - chance)


@torch.no_grad()
def teacher_distance(pairs: list[tuple[nn.Module, nn.Module]]) -> float:
    """Length of student minus teacher over the length of the teacher, of all weights that are trained and followed.

    1 where there are none.
    """
    followed = [
        (s, t)
        for pair in pairs
        for s, t in zip(pair[0].parameters(), pair[1].parameters(), strict=True)
        if s.requires_grad
    ]
    if not followed:
        return 1.0
    student, teacher = (list(side) for side in zip(*followed, strict=True))
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(student, teacher))).norm()
    return float(apart / torch.stack(torch._foreach_norm(teacher)).norm())


class State(IntEnum):
    OK = 0
    WARN = 1
    COLLAPSED = 2


class Symptom(NamedTuple):
    """A state that signals show, with its likely cause and remedy; the first of a list that is seen is named."""

    name: str
    state: State
    seen: Callable[[dict[str, float]], bool]
    text: str


def _any(name: str, holds: Callable[[float], bool]) -> Callable[[dict[str, float]], bool]:
    """True if some objective's signal of this name fulfills a condition."""
    return lambda signals: any(holds(value) for key, value in signals.items() if key.endswith(f"/{name}"))


def _collapsed(holds_mean_entropy: Callable[[float], bool]) -> Callable[[dict[str, float]], bool]:
    """True if the targets of some objective tell nothing, and their mean has such an entropy."""

    def seen(signals: dict[str, float]) -> bool:
        names = [key.rpartition("/")[0] for key in signals if key.endswith("/mutual_information")]
        return any(
            signals[f"{name}/mutual_information"] < MIN_INFORMATION
            and holds_mean_entropy(signals[f"{name}/mean_teacher_entropy"])
            for name in names
        )

    return seen


# What the teacher moves in a step, as a fraction of its weights: healthy runs stay below a thousandth.
MAX_SPEED = 0.01


def _runs_away(signals: dict[str, float]) -> bool:
    return signals.get("teacher/distance", 0.0) * (1 - signals.get("momentum", 0.0)) > MAX_SPEED


# Fraction of ln K that targets tell about images or patches: healthy runs have 0.2 and more from their first steps.
MIN_INFORMATION = 0.05

SYMPTOMS = (
    Symptom(
        "blank images", State.COLLAPSED, lambda s: s.get("crops/std", 1.0) < 0.05,
        "crops have next to no contrast: the images are blank, or read wrongly. Look at them (selfpatch check IMAGES), "
        "and at crops.mean and crops.std",
    ),
    Symptom(
        "no moving average", State.COLLAPSED, lambda s: s.get("teacher/distance", 1.0) == 0,
        "the teacher is the student: nothing slows the targets down. Set teacher.momentum to 0.99 or more",
    ),
    Symptom(
        "weights run away", State.COLLAPSED, _runs_away,
        "the student's weights run away from the teacher's: the learning rate is too high. Divide optim.lr by 10 or "
        "more, or lengthen optim.warmup-epochs",
    ),
    Symptom(
        "one prototype", State.COLLAPSED, _any("mean_teacher_entropy", lambda entropy: entropy < 0.5),
        "most targets are the same few prototypes: nothing keeps the targets apart. Centering is off or too slow: use "
        "distillation.centering sinkhorn, or mean with a center-momentum of 0.9; a higher teacher temperature helps",
    ),
    Symptom(
        "patches alike", State.COLLAPSED, lambda s: s.get("patches/similarity", 0.0) > 0.98,
        "patches of an image are all alike. Lower the weight of objectives on image tokens, or the learning rate, or "
        "start from trained weights (--init-from)",
    ),
    Symptom(
        "uniform targets", State.COLLAPSED, _collapsed(lambda entropy: entropy >= 0.5),
        "all targets are the same even spread over the prototypes: the loss stays at ln K. The teacher's temperature "
        "is too high: set distillation.teacher-temperature (and its warm-up) well below student-temperature",
    ),
    Symptom(
        "images alike", State.WARN, lambda s: s.get("images/spread", 1.0) < 0.02,
        "image tokens are nearly the same for all images. Images may all be alike (selfpatch check IMAGES), or the "
        "learning rate is too high",
    ),
    Symptom(
        "place alone", State.WARN, lambda s: s.get("patches/place", 0.0) > 0.7,
        "patches tell their place more than what they show. Smaller crops.global-scale and objectives.*.crops global "
        "help; selfpatch export --remove-position takes it out",
    ),
    Symptom(
        "norm outliers", State.WARN, lambda s: s.get("patches/norm_outliers", 0.0) > 0.05,
        "some patch tokens are many times as long as others, as in large models without registers; choose a backbone "
        "with registers (reg4 in timm's names)",
    ),
)  # fmt: skip

# A step whose loss is so many times the median of the last lines of the log is told, once there are enough of them.
SPIKE, NUM_USUAL, MIN_USUAL = 10.0, 20, 5


class LossSpikes:
    """Notices a step whose loss is far above the usual: a message once per run of such lines."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=NUM_USUAL)
        self._told = False

    def update(self, loss: float, largest: float) -> str | None:
        """
        Args:
            loss: mean of a line of the log. largest: of a single step since the line before.
        """
        usual = statistics.median(self._usual) if len(self._usual) >= MIN_USUAL else math.inf
        spikes = usual > 0 and largest > SPIKE * usual
        told, self._told = self._told, spikes
        if math.isfinite(loss) and not spikes:
            self._usual.append(loss)
        if told or not spikes:
            return None
        return (
            f"warning: the loss of a step was {largest:.4g}, and {usual:.4g} is usual. If it does not fall back, lower "
            "the learning rate (optim.lr) or clip gradients (optim.clip-norm), and look at the images of this step"
        )


class Health:
    """The state of a run by the lines of its log: a message once per change of state.

    A symptom must be there in NUM_LINES lines in a row, so that a single odd step says nothing.
    """

    def __init__(self) -> None:
        self.state, self.symptom = State.OK, ""
        self._candidate, self._num_lines = "", 0

    def update(self, signals: dict[str, float]) -> str | None:
        """Take the signals of a line; returns what to say, if the state has changed."""
        found = next((symptom for symptom in SYMPTOMS if symptom.seen(signals)), None)
        name = found.name if found else ""
        self._num_lines = self._num_lines + 1 if name == self._candidate else 1
        self._candidate = name
        if self._num_lines < NUM_LINES or name == self.symptom:
            return None
        self.symptom = name
        self.state = found.state if found else State.OK
        if found is None:
            return "health OK: the last warning no longer holds"
        return f"health {found.state.name} ({found.name}): {found.text} (docs/health.md)"
