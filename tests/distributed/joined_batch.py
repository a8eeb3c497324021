"""Every recipe at a tiny size, and every method on every family of backbones, trained for some steps by any number of
gloo processes that share their batches."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from selfpatch import distributed
from selfpatch.backbones.build import build_backbone
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig
from selfpatch.data.augmentation.multi_crop import MultiCrop
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.loading.loader import Batch, training_batches
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.distributed import global_mean, rank, whole_tensor, world_size
from selfpatch.output import checkpoint
from selfpatch.pretraining import train_step
from selfpatch.pretraining.parallel import parallelize
from selfpatch.pretraining.student_teacher import build_student_teacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import PretrainTask, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from selfpatch.recipes import RECIPES
from selfpatch.recipes.derive import RunFacts, derive
from tests.methods.small_methods import CELLS, small_backbone, small_config

BATCH_SIZE, STEPS = 8, 10
CASES = ["dino+accumulated", *RECIPES]
METHODS = {" ".join([cell.method, cell.added, "on", cell.backbone]): cell for cell in CELLS}
KINDS = ("ddp", "fsdp2")


def tiny_method(name: str) -> PretrainConfig:
    """A method of the table of tests/methods, without the warm-up of a recipe."""
    config = small_config(METHODS[name])
    optim = dataclasses.replace(config.optim, batch_size=BATCH_SIZE, steps=None, epochs=20, accumulate=1)
    efficiency = dataclasses.replace(config.efficiency, activation_checkpointing="none", precision="float32")
    return derive(
        dataclasses.replace(config, optim=optim, efficiency=efficiency),
        RunFacts(num_images=20, on_gpu=False, patch_size=8, embed_dim=32),
    )[0]


def tiny(recipe: str) -> PretrainConfig:
    """The recipe with a small network, small crops and small heads; all else is its own, objectives above all.

    With stochastic depth, except for "RECIPE+accumulated". That cuts a rank's share into two parts, which hold other
    images than the parts of a whole batch: the same for objectives that do not mix images.
    """
    recipe, _, accumulated = recipe.partition("+")
    config = RECIPES[recipe]()
    backbone = dataclasses.replace(
        config.backbone,
        name="vit_tiny_patch16_224",
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        drop_path=0.0 if accumulated else 0.3,
    )
    objectives = {}
    for name, objective in config.objectives.given().items():
        small: dict[str, Any] = {
            field.name: 16 for field in dataclasses.fields(objective) if field.name in ("hidden_dim", "output_dim")
        }
        # Of a few steps, two per epoch.
        soon = {"overlap_size": 3, "teacher_epoch": 0.5, "start_epoch": 1.0, "refresh_steps": 3}
        small |= {key: value for key, value in soon.items() if getattr(objective, key, None)}
        if getattr(objective, "head", None) is not None:
            small["head"] = dataclasses.replace(objective.head, num_prototypes=24, hidden_dim=16, bottleneck_dim=8)
        objectives[name] = dataclasses.replace(objective, **small)
    config = dataclasses.replace(
        config,
        backbone=backbone,
        crops=dataclasses.replace(
            config.crops, global_size=32, local_size=24, num_local=min(config.crops.num_local, 2), mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        objectives=dataclasses.replace(config.objectives, **objectives),
        optim=dataclasses.replace(
            config.optim, batch_size=BATCH_SIZE, lr=1e-3, lr_scaling="none", epochs=20, warmup_epochs=0,
            accumulate=2 if accumulated else 1,
        ),
        teacher=dataclasses.replace(config.teacher, momentum=0.9),
        efficiency=dataclasses.replace(config.efficiency, activation_checkpointing="none", precision="float32"),
    )  # fmt: skip
    return derive(config, RunFacts(num_images=20, on_gpu=False, patch_size=8, embed_dim=32))[0]


class TinyRun:
    """A recipe on this rank."""

    def __init__(self, recipe: str, images: Path, kind: str, *, resume: Path | None = None):
        self.config = config = tiny_method(recipe) if recipe in METHODS else tiny(recipe)
        self.source = ImageFolder(images)
        assert isinstance(config.optim.batch_size, int)
        self.sampler = sampler = EpochSampler(len(self.source), config.optim.batch_size, seed=0)
        torch.manual_seed(rank())  # ranks begin with rank 0's weights, whatever their own
        if recipe in METHODS:
            backbone = small_backbone(config)
        else:
            backbone = build_backbone(config.backbone, (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        student_teacher = build_student_teacher(backbone, config, steps_per_epoch=sampler.steps_per_epoch).double()
        build = functools.partial(build_optimizer, optim=config.optim)
        self.state = TrainState(student_teacher, build(student_teacher))
        if resume is not None and distributed.is_main():
            self.state.load(checkpoint.load(resume))
            student_teacher.double()
        device = torch.device("cpu")
        self.model = parallelize(self.state, kind, device, build_optimizer=build)
        self.task = PretrainTask(
            self.state, config, sampler=sampler, device=device, record_bad_images=len,
            model=self.model,

            schedules=build_schedules(
                config.optim, config.teacher, num_steps=40, steps_per_epoch=sampler.steps_per_epoch
            ),
        )  # fmt: skip
        self.task.train_mode()

    def batches(self, first_step: int, stop_step: int):
        return training_batches(
            self.source, self.sampler,
            MultiCrop(
                self.config.crops, recolor=self.state.student_teacher.needs_recolored,
                boxes=self.state.student_teacher.needs_boxes,
            ),
            first_step=first_step, stop_step=stop_step,
            num_workers=0, rank=rank(), world_size=world_size(),
        )  # fmt: skip

    def train(self, num_steps: int) -> dict[str, Any]:
        """Losses of the steps to come, and what they leave."""
        first = self.state.step
        losses = torch.stack([self.step(batch) for batch in self.batches(first, first + num_steps)])
        tensors, backbone = self.state.tensors(), self.model.export_backbone()
        exported = {} if backbone is None else backbone.state_dict()
        return {"loss": losses, "weights": tensors["model"], "optimizer": tensors["optimizer"], "exported": exported}

    def step(self, batch: Batch) -> torch.Tensor:
        torch.manual_seed(batch.step)
        metrics, applied = self.task.step(batch, batch.step)
        assert applied
        return global_mean(metrics["loss"])

    def gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Of one step, which is then forgotten."""
        found = {}

        def remember(student_teacher, optimizer, loss, step, **settings) -> bool:
            for name, parameter in student_teacher.named_parameters():
                if parameter.grad is not None:
                    found[name] = whole_tensor(parameter.grad).clone()
            optimizer.zero_grad(set_to_none=True)
            student_teacher.discard()
            return True

        before, train_step.apply_gradients = train_step.apply_gradients, remember
        self.step(batch)
        train_step.apply_gradients = before
        return found


def train_tiny(
    rank_: int, num_ranks: int, folder: Path, images: Path, recipes: list[str], kinds: list[str], steps: int
) -> None:
    """All that one process finds; rank 0 writes it."""
    # In double precision throughout: rounding is not taken for a difference.
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    make_views = train_step.make_views

    def in_double(*given: Any, **named: Any) -> Iterator[Views]:
        for made in make_views(*given, **named):
            yield Views(*(x.double() if x is not None and x.is_floating_point() else x for x in made))

    train_step.make_views = in_double
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if num_ranks > 1:
        distributed.start(
            rank=rank_, world_size=num_ranks, init_method=f"file://{folder}/rendezvous-{num_ranks}",
            device=torch.device("cpu"), timeout=timedelta(seconds=100),
        )  # fmt: skip
    results: dict[str, Any] = {}
    for kind in kinds if num_ranks > 1 else kinds[:1]:
        for recipe in recipes:
            run = TinyRun(recipe, images, kind)
            gradients = run.gradients(next(run.batches(0, 1)))
            results[f"{kind}/{recipe}"] = run.train(steps) | {"gradients": gradients}
            if num_ranks == 2 and rank_ == 0 and kind == kinds[0]:
                tensors, plain = run.state.tensors(), run.state.state() | {"method": {}}
                checkpoint.save(folder / "checkpoints" / recipe, steps, tensors, plain, keep=1)
        # Two ranks come first.
        saved = folder / "checkpoints" / recipes[-1] / f"step-{steps:08d}"
        results[f"{kind}/resumed"] = TinyRun(recipes[-1], images, kind, resume=saved).train(2)
    if rank_ == 0:
        torch.save(results, folder / f"{num_ranks}.pt")
    if num_ranks > 1:
        distributed.stop()


def run_tiny(
    num_ranks: int,
    folder: Path,
    images: Path,
    *,
    recipes: list[str] | None = None,
    kinds: tuple[str, ...] = KINDS,
    steps: int = STEPS,
) -> dict[str, dict[str, Any]]:
    """Results as rank 0 has them, by kind and recipe; "KIND/resumed" goes on from the last recipe on two ranks."""
    given = (num_ranks, folder, images, recipes or CASES, list(kinds), steps)
    mp.start_processes(train_tiny, given, nprocs=num_ranks, start_method="spawn")
    return torch.load(folder / f"{num_ranks}.pt", weights_only=True)
