"""Training of evaluation heads, alone or with the backbone below them, in the package's own loop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.config.io import differences, to_dict
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.errors import StoppedError, UserError
from selfpatch.evaluation.features import batches, prefetch
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.evaluation.result import current_names
from selfpatch.evaluation.task import EvalContext
from selfpatch.optim.optimizer import load_optimizer_state, optimizer_state, optimizer_step
from selfpatch.optim.schedules import Schedule
from selfpatch.output import checkpoint
from selfpatch.output.folder_lock import FolderLock
from selfpatch.output.metric_logger import MetricLogger
from selfpatch.output.progress import TrainingProgress
from selfpatch.output.terminal import say
from selfpatch.training.loop import PeriodicCallback, StepOutput, train
from selfpatch.training.precision import autocast_for
from selfpatch.training.stop_signal import StopSignal

LOG_EVERY = 10  # steps, or a 200th of the training, if that is more
MAX_SKIPPED = 20  # steps in a row without a finite loss and gradient
KEPT_CHECKPOINTS = 2

# The samples of one step, or of a part of it, to the terms of the loss: scalars, each a mean over the samples.
Losses = Callable[[list[Any]], dict[str, Tensor]]


class OtherTrainingError(UserError):
    """The output folder holds the training of another model, protocol or data set."""


def train_head(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    sample: Callable[[int, int], Any],
    *,
    num_samples: int,
    batch_size: int,
    steps: int,
    lr: Schedule,
    clip_norm: float = 0.0,
    seed: int,
    identity: dict[str, Any],
    context: EvalContext,
    precision: str = "auto",
    accumulate: int = 1,
    callbacks: Sequence[PeriodicCallback] = (),
) -> None:
    """Train `model` in place, and leave it in eval mode; called again, it goes on where it was, bit for bit.

    Writes OUT/checkpoints and OUT/metrics.jsonl. Random numbers of torch (dropout, stochastic depth) follow from the
    seed and the step, and are afterwards what they were before.

    Args:
        model: all that is trained. Its state before the first step is part of its identity.
        optimizer: its groups may carry "lr_scale", a factor on the learning rate, which is set at every step.
        losses: called under autocast; the sum of its terms is minimised.
        sample: (epoch, index) -> one training sample, on threads; a pure function of these and of the seed.
        num_samples: how many there are. Batches run on over the ends of epochs, so they may be fewer than a batch.
        clip_norm: largest norm of the gradient over all parameters; 0 leaves it alone.
        identity: plain values that a checkpoint in OUT must agree in to be gone on from: settings, data, weights.
        precision: "auto" is bf16 on a GPU that has it, else float32.
        accumulate: parts a batch is cut into, one after another on the device; batch norm sees one at a time.
        callbacks: called before the checkpoint of their step is saved, so that what they write is never behind it.

    Raises:
        OtherTrainingError: OUT holds the training of something else.
        UserError: another process is at OUT.
        StoppedError: a signal came; the training so far is saved.
        DivergenceError: step after step was not finite.
    """
    # 1. The identity of this training: a checkpoint of another one is not gone on from.
    identity = identity | {"initial_weights": fingerprint(model)}
    folder = context.out / "checkpoints"
    context.out.mkdir(parents=True, exist_ok=True)
    with closing(FolderLock(context.out)) as lock, torch.random.fork_rng(_cuda(context.device)):
        lock.take()
        # 2. Go on where OUT was left, if it was.
        first_step = _restore(model, optimizer, identity, context)

        def save(step: int) -> dict[str, float]:
            tensors = {"model": model.state_dict(), "optimizer": optimizer_state(optimizer, model)}
            checkpoint.save(folder, step, tensors, {"step": step, "identity": identity}, keep=KEPT_CHECKPOINTS)
            return {}

        # 3. Train in the package's loop, with a checkpoint now and then and at a signal.
        trainee = _Head(
            model,
            optimizer,
            losses,
            batch_size=batch_size,
            lr=lr,
            clip_norm=clip_norm,
            precision=precision,
            accumulate=accumulate,
            device=context.device,
        )
        if first_step < steps:
            with StopSignal() as signal, closing(TrainingProgress(first_step, steps)) as progress:
                done = train(
                    trainee,
                    _batches(sample, num_samples, batch_size, seed, range(first_step, steps)),
                    first_step=first_step,
                    num_steps=steps,
                    seed=seed,
                    log_every=max(LOG_EVERY, steps // 200),
                    max_skipped=MAX_SKIPPED,
                    device=context.device,
                    logger=MetricLogger(context.out / "metrics.jsonl", first_step=first_step),
                    progress=progress,
                    callbacks=[*callbacks, PeriodicCallback(min(max(steps // 10, 1), 1000), save, at_stop=True)],
                    should_stop=lambda done: signal.received is not None,
                )
            if signal.received is not None and done < steps:
                raise StoppedError(
                    signal.received,
                    f"stopped after {done} of {steps} steps, saved; the same command goes on from there",
                )
    model.eval()


class _Head:
    """Train task of a head: any module, by the sum of its losses."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        *,
        batch_size: int,
        lr: Schedule,
        clip_norm: float,
        precision: str,
        accumulate: int,
        device: torch.device,
    ):
        self.batch_size = batch_size
        self._model, self._optimizer, self._losses = model, optimizer, losses
        self._lr, self._clip_norm, self._accumulate = lr, clip_norm, accumulate
        self._autocast = autocast_for(precision, device)
        self._skipped_steps = 0  # since it was last started

    def train_mode(self) -> None:
        self._model.train()

    def step(self, batch: list[Any], step: int) -> StepOutput:
        # The forward pass moves the means of batch norms, also in a step that turns out not to be finite.
        buffers = [buffer.clone() for buffer in self._model.buffers()]

        # 1. Losses and gradients, over the parts of the batch.
        sums: dict[str, Tensor] = {}
        size = -(-len(batch) // self._accumulate)
        for part in batches(batch, size):
            with self._autocast():
                terms = self._losses(part)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            share = len(part) / len(batch)
            (loss * share).backward()
            metrics = {f"{name}/loss": term.detach() for name, term in terms.items()} if len(terms) > 1 else {}
            for name, value in ({"loss": loss.detach()} | metrics).items():
                sums[name] = sums.get(name, 0) + value * share

        # 2. Clip and step.
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr(step) * group.get("lr_scale", 1.0)
        applied = optimizer_step(self._optimizer, sums["loss"], max_norm=self._clip_norm)
        if not applied:
            self._skipped_steps += 1
            for buffer, before in zip(self._model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return StepOutput(sums, applied)

    def log_scalars(self, step: int) -> dict[str, float]:
        return {"lr": self._lr(step), "skipped_steps": self._skipped_steps}

    def log_message(self, means: dict[str, float], *, last: bool) -> str | None:
        return None

    def divergence_hint(self, step: int, metrics: dict[str, Tensor]) -> str:
        return (
            "A lower learning rate (lr), a longer warm-up (warmup-steps) or float32 (precision float32) most often "
            "helps; the last checkpoint is from before"
        )


def _batches(
    sample: Callable[[int, int], Any], num_samples: int, batch_size: int, seed: int, steps: range
) -> Iterator[list[Any]]:
    """The samples of every step. Batches run on over the ends of epochs, so samples may be few."""
    sampler = EpochSampler(num_samples, 1, seed)

    def places() -> Iterator[list[tuple[int, int]]]:
        for step in steps:
            positions = range(step * batch_size, (step + 1) * batch_size)
            yield [(sampler.epoch(position), int(sampler.indices(position)[0])) for position in positions]

    return prefetch(lambda place: sample(*place), places())


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any], context: EvalContext) -> int:
    """Load what OUT holds; returns the number of steps done."""
    found, skipped_checkpoints = checkpoint.load_latest(
        context.out / "checkpoints",
        lambda found: checkpoint.require(found, state={"step": int}, tensors=("model", "optimizer")),
    )
    if found is None and skipped_checkpoints:
        raise UserError(
            f"no checkpoint of {context.out} can be read: {skipped_checkpoints[0]}. Give a new folder to train anew"
        )
    if found is None:
        return 0
    for reason in skipped_checkpoints:
        say(f"warning: {reason}; an older checkpoint is used")
    stored = found.state.get("identity")
    if isinstance(stored, dict) and isinstance(stored.get("protocol"), dict):
        stored = stored | {"protocol": current_names(stored["protocol"])}
    if lines := differences(stored, identity):
        shown = "\n  ".join(lines[:20])
        raise OtherTrainingError(
            f"{context.out} holds a head that was trained otherwise (then -> now):\n  {shown}\nGive a new folder, or "
            "the settings, data and model of then to go on"
        )
    model.load_state_dict(found.tensors["model"])
    load_optimizer_state(optimizer, found.tensors["optimizer"], model)
    say(f"going on from {found.path} at step {found.state['step']}")
    return found.state["step"]


def resume_key(task: str, protocol: Any, data: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    """Values that a checkpoint must share with the run that resumes it: task, settings, training data, weights."""
    return {"task": task, "protocol": to_dict(protocol), "data": data, "model": fingerprint(backbone)}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch follow from the seed inside, and are afterwards what they were before."""
    with torch.random.fork_rng(_cuda(device)):
        torch.manual_seed(seed)
        yield


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
