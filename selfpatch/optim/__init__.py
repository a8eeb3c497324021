"""Parameter groups, clipping, the optimizer step, the teacher's moving average, and schedules."""
