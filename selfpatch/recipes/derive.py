"""Settings that follow from the images and the hardware, each with the reason that is printed before a run."""

import math
from dataclasses import replace
from typing import NamedTuple

from selfpatch.config import PretrainConfig


class Facts(NamedTuple):
    """What is known before a run."""

    num_images: int
    on_gpu: bool


class Derived(NamedTuple):
    """A setting that nobody gave, what it became, and why."""

    setting: str
    value: object
    reason: str


def derive(config: PretrainConfig, facts: Facts) -> tuple[PretrainConfig, list[Derived]]:
    """Fill in what the configuration leaves at None; what was given stays, and what depends on it follows it."""
    derived: list[Derived] = []

    def fill(setting: str, given: object, value: object, reason: str) -> object:
        if given is not None:
            return given
        derived.append(Derived(setting, value, reason))
        return value

    optim = config.optim
    batch_size = fill("optim.batch-size", optim.batch_size, _batch_size(facts), "placeholder")
    steps_per_epoch = max(facts.num_images // batch_size, 1)
    epochs = fill("optim.epochs", optim.epochs, 100.0, "placeholder")
    num_steps = optim.steps or max(round(epochs * steps_per_epoch), 1)
    warmup = fill("optim.warmup-epochs", optim.warmup_epochs, 0.1 * num_steps / steps_per_epoch, "placeholder")
    lr = fill("optim.lr", optim.lr, 2e-3, "placeholder")
    momentum = fill("teacher.momentum", config.teacher.momentum, 1 - 10 / num_steps, "placeholder")
    optim = replace(optim, batch_size=batch_size, epochs=epochs, warmup_epochs=warmup, lr=lr)
    config = replace(config, optim=optim, teacher=replace(config.teacher, momentum=momentum))
    return config, derived


def _batch_size(facts: Facts) -> int:
    largest = 256 if facts.on_gpu else 64
    return min(largest, 2 ** int(math.log2(max(facts.num_images // 4, 1))))
