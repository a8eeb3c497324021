"""Parameter groups, clipping, the optimizer step, the teacher's moving average, and schedules."""

from selfpatch.optim import late_compiler as late_compiler  # before timm
