"""Values that change while training, as functions of the step: learning rate, weight decay, momentum, temperature."""

import math
from collections.abc import Callable, Sequence

from selfpatch.errors import UserError

Schedule = Callable[[int], float]


def warmup_cosine(peak: float, end: float, num_steps: int, warmup_steps: int = 0, start: float = 0.0) -> Schedule:
    """Linear from `start` to `peak` over `warmup_steps`, then half a cosine towards `end`, never quite reached.

    The warm-up includes both its ends (step 0 gives `start`, step `warmup_steps - 1` gives `peak`), as in DINO's code.
    Beyond `num_steps` the value stays at `end`.
    """
    if warmup_steps > num_steps:
        raise UserError(f"a warm-up of {warmup_steps} steps does not fit into {num_steps}; shorten it or train longer")
    cosine_steps = max(num_steps - warmup_steps, 1)

    def value(step: int) -> float:
        if step < warmup_steps:
            return start + (peak - start) * step / max(warmup_steps - 1, 1)
        progress = min((step - warmup_steps) / cosine_steps, 1.0)
        return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * progress))

    return value


def late_ramp(start_step: int, ramp_steps: int) -> Schedule:
    """0 before `start_step`, then a line that reaches 1 after `ramp_steps`; 1 from the first step on if it starts at 0.

    The step of the start gives 1 / `ramp_steps` already: what starts late trains from there on.
    """
    if start_step == 0:
        return lambda step: 1.0
    return lambda step: min(max(step - start_step + 1, 0) / max(ramp_steps, 1), 1.0)


def warmup_poly(
    peak: float, num_steps: int, warmup_steps: int = 0, *, start: float = 1e-6, power: float = 1.0
) -> Schedule:
    """`peak` times a power of the fraction of steps that are left, and in the warm-up times a line from `start` to 1.

    Step 0 gives `start` times the peak, step `warmup_steps` is the first without the line; 0 would come at `num_steps`.

    Source: mmcv's PolyLrUpdaterHook with a linear warm-up, as mmsegmentation trains transformers.
    """

    def value(step: int) -> float:
        factor = (1 - min(step / num_steps, 1.0)) ** power
        if step < warmup_steps:
            factor *= start + (1 - start) * step / warmup_steps
        return peak * factor

    return value


def epochwise_linear(start: float, end: float, num_epochs: int, steps_per_epoch: int) -> Schedule:
    """From `start` to `end` in equal stairs, one per epoch, both included; then `end` (DINO's teacher temperature)."""

    def value(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch >= num_epochs:
            return end
        return start + (end - start) * epoch / max(num_epochs - 1, 1)

    return value


def warmup_multistep(
    peak: float, *, milestones: Sequence[int], factor: float, warmup_steps: int = 0, start: float = 0.0
) -> Schedule:
    """Linear from `start` at step 0 to `peak` at step `warmup_steps`; times `factor` from each milestone on.

    Source: mmdetection's step schedule with a linear warm-up, whose two parts are multiplied where they meet.
    """

    def value(step: int) -> float:
        warmup_factor = 1.0 if step >= warmup_steps else start / peak + (1 - start / peak) * step / warmup_steps
        return peak * warmup_factor * factor ** sum(step >= milestone for milestone in milestones)

    return value
