"""One student and teacher on one process or on several, by DDP or FSDP2. Wraps StudentTeacher, touches no objective.

"ddp": every process holds everything, and gradients are averaged. "fsdp2": weights, gradients, optimizer and teacher
are sharded; a block is gathered while it runs, heads and aggregator (the root group) for the length of a step.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.stochastic_depth import set_num_images
from selfpatch.distributed import (
    device_mesh,
    from_rank_0,
    is_main,
    receive_all_from_rank_0,
    shard_like,
    whole_tensor,
    world_size,
)
from selfpatch.objectives.encoder import Encoder
from selfpatch.optim.optimizer import load_optimizer_state
from selfpatch.pretraining.student_teacher import StudentTeacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.views import Views


class OneProcess:
    """Student and teacher of a run without others; the contract of the other two."""

    def __init__(self, student_teacher: StudentTeacher):
        self.student_teacher = student_teacher

    def __call__(self, views: Views, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss and signals of this process's share of the images."""
        return self.student_teacher(views, step)

    def accumulating(self) -> AbstractContextManager[None]:
        """Forward and backward inside keep gradients to this process: more parts of the batch follow."""
        return nullcontext()

    def export_backbone(self) -> Backbone | None:
        """The teacher's backbone as it is shipped, on rank 0; all ranks call it."""
        return self.student_teacher.teacher.export_backbone()


class Replicated(OneProcess):
    """DDP."""

    def __init__(self, student_teacher: StudentTeacher):
        super().__init__(student_teacher)
        # Which parameters have no gradient depends on the step: mask tokens, objectives that start later.
        # Centers are reduced over ranks where they change. torch renamed the argument.
        known = inspect.signature(DistributedDataParallel).parameters
        no_buffers: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        self._ddp = DistributedDataParallel(
            student_teacher, find_unused_parameters=True, gradient_as_bucket_view=True, **no_buffers
        )

    def __call__(self, views: Views, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        set_num_images(self.student_teacher, views.num_images)
        return self._ddp(views, step)

    def accumulating(self) -> AbstractContextManager[None]:
        return self._ddp.no_sync()

    def export_backbone(self) -> Backbone | None:
        return super().export_backbone() if is_main() else None


class Sharded(OneProcess):
    """FSDP2. Student and teacher are sharded alike, so the teacher follows shard by shard."""

    def __init__(self, student_teacher: StudentTeacher, device: torch.device):
        super().__init__(student_teacher)
        # What is exported and evaluated is whole: shards are gathered in copies of this one.
        self._whole_teacher = copy.deepcopy(student_teacher.teacher).cpu()
        student_teacher.teacher.frozen_copy = lambda: self._gather(everywhere=True).to(device)
        from torch.distributed.fsdp import fully_shard  # its import takes longer than all of this package

        mesh = device_mesh(device)
        for encoder in (student_teacher.student, student_teacher.teacher):
            for block in encoder.backbone.blocks:
                fully_shard(block, mesh=mesh)
        fully_shard(student_teacher, mesh=mesh)
        student_teacher.to(device)  # buffers: shards are there already

    def __call__(self, views: Views, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        set_num_images(self.student_teacher, views.num_images)
        return self.student_teacher(views, step)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        root: Any = self.student_teacher
        root.set_requires_gradient_sync(False)
        yield
        root.set_requires_gradient_sync(True)

    def _gather(self, *, everywhere: bool) -> Encoder:
        """The whole teacher on the CPU, of every rank or of rank 0."""
        sharded = self.student_teacher.teacher.state_dict()
        tensors = {name: whole_tensor(tensor, everywhere=everywhere) for name, tensor in sharded.items()}
        if everywhere or is_main():
            self._whole_teacher.load_state_dict(tensors)
        return copy.deepcopy(self._whole_teacher)

    def export_backbone(self) -> Backbone | None:
        teacher = self._gather(everywhere=False)
        return teacher.export_backbone() if is_main() else None


def parallelize(
    state: TrainState,
    kind: str,
    device: torch.device,
    *,
    build_optimizer: Callable[[StudentTeacher], torch.optim.Optimizer],
) -> OneProcess:
    """Give every rank the state that rank 0 has, and let all of them train it.

    Args:
        kind: "ddp" or "fsdp2", for which the model may still be on the CPU, and the optimizer is made anew over shards.
    """
    if world_size() == 1:
        return OneProcess(state.student_teacher)
    # 1. Step, counters, weights, centers; also of modules that rank 0 has made for its checkpoint.
    state.step, state.counters = from_rank_0((state.step, state.counters))
    tensors = state.tensors() if is_main() else {"model": {}, "optimizer": {}}
    model_tensors = receive_all_from_rank_0(tensors["model"], device_of(state.student_teacher))
    if not is_main():
        state.student_teacher.load_state_dict(model_tensors)

    # 2. The model of this process.
    if kind == "fsdp2":
        model = Sharded(state.student_teacher, device)
        state.optimizer = build_optimizer(state.student_teacher)
    else:
        model = Replicated(state.student_teacher)

    # 3. The optimizer's state: a parameter's has its shape and its shards, but for the count of steps.
    parameters = dict(state.student_teacher.named_parameters())
    received = receive_all_from_rank_0(tensors["optimizer"], device)
    sharded = {
        name: shard_like(parameters[name.rpartition("/")[0]], tensor) if tensor.ndim else tensor
        for name, tensor in received.items()
    }
    load_optimizer_state(state.optimizer, sharded, state.student_teacher)
    return model


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
