"""The only file that asks for a rank. Without a process group every function is the identity.

Gradients are averaged over ranks, so a loss is a mean over images, on every rank over its own share of the batch. What
mixes images (batch norm, the nearest image, Sinkhorn) is computed over all ranks; where gradients flow through such a
sum, backward sums them over ranks as well: d(mean over s of L_s)/dx = mean over s of dL_s/dx, and the mean comes last.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from selfpatch.errors import FailedElsewhereError, UserError

T = TypeVar("T")

# How long ranks wait while rank 0 computes scores and pictures: for ever, as good as. One that died is noticed at once.
PATIENCE = timedelta(days=365)
# True while one rank computes something by itself.
_alone = False
# Seconds for which this process has waited in collectives.
_waited_s = 0.0
# A process group of its own in which ranks wait for rank 0 for as long as that takes.
_patient_group: Any = None


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if is_initialized() and not _alone else 1


def num_ranks() -> int:
    """As `world_size`, also while one rank computes something by itself."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """True on the one rank that prints and writes files: rank 0."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this rank computes without the others, as if it were the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def global_sum(x: Tensor) -> Tensor:
    """Sum over ranks of a tensor that every rank holds, without gradient; the input is left alone."""
    return x if world_size() == 1 else _all_reduce(x, dist.ReduceOp.SUM)


def global_mean(x: Tensor) -> Tensor:
    """Mean over ranks of a tensor that every rank holds, without gradient; the input is left alone."""
    return global_sum(x) / world_size()


def global_logsumexp(x: Tensor) -> Tensor:
    """log of the sum over ranks of exp(x), for a tensor that every rank holds, without gradient."""
    if world_size() == 1:
        return x
    largest = global_max(x)
    return largest + global_sum((x - largest).exp()).log()


def global_max(x: Tensor) -> Tensor:
    """Largest value over ranks, element by element, without gradient; the input is left alone."""
    return x if world_size() == 1 else _all_reduce(x, dist.ReduceOp.MAX)


def _all_reduce(x: Tensor, op: Any) -> Tensor:
    x = x.detach().clone()
    with _waiting():
        dist.all_reduce(x, op=op)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, each of which holds equally many, one rank after another, without gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    with _waiting():
        dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def seconds_waited() -> float:
    """How long this process has waited for others so far, in sums and the like of this file; on a GPU little of it."""
    return _waited_s


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    global _waited_s
    start = time.perf_counter()
    yield
    _waited_s += time.perf_counter() - start


def gather_rows_with_gradient(x: Float[Tensor, "rows *D"]) -> Float[Tensor, "all *D"]:
    """As `gather_rows`; a row gets the gradients that all ranks have for it."""
    return x if world_size() == 1 else _GatherRows.apply(x)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.num_rows = len(x)
        return gather_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return own_rows(global_sum(gradients[0].contiguous()), ctx.num_rows)


def own_rows(x: Tensor, num_rows: int) -> Tensor:
    """This rank's `num_rows` rows of those of all ranks."""
    first = rank() * num_rows if world_size() > 1 else 0
    return x[first : first + num_rows]


def rand_rows(num_rows: int, num_images: int) -> Float[Tensor, " {num_rows}"]:
    """Uniform random numbers for the rows of this rank's images, the same as one process with all images draws.

    Every rank draws those of all ranks, from the same state of torch's generator.

    Args:
        num_rows: one per crop of an image, crop-major.
        num_images: of this rank.
    """
    if world_size() == 1:
        return torch.rand(num_rows)
    return torch.rand(num_rows // num_images, world_size(), num_images)[:, rank()].flatten()


def receive_all_from_rank_0(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors, by name, on `device` of every rank; the others hand in anything."""
    if world_size() == 1:
        return tensors
    shapes = from_rank_0({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
    received = {}
    for name, (shape, dtype) in shapes.items():
        tensor = tensors[name].to(device) if rank() == 0 else torch.empty(shape, dtype=dtype, device=device)
        received[name] = tensor.contiguous()
        dist.broadcast(received[name], src=0)
    return received


def device_mesh(device: torch.device) -> Any:
    """All ranks in a row, for FSDP2."""
    return dist.device_mesh.init_device_mesh(device.type, (world_size(),))


def local_tensor(x: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor as it is."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[operator]


def whole_tensor(x: Tensor, *, everywhere: bool = False) -> Tensor:
    """All shards of a sharded tensor, on rank 0's CPU or everywhere; any other as it is. All ranks call it."""
    if not is_sharded(x):
        return x
    whole = x.full_tensor()  # type: ignore[operator]
    return whole.cpu() if everywhere or is_main() else whole.new_empty(0)


def shard_like(sharded: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, which every rank holds, sharded as another one is."""
    if not is_sharded(sharded):
        return whole
    other: Any = sharded
    return dist.tensor.distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)


def is_sharded(x: Tensor) -> bool:
    return hasattr(x, "full_tensor")  # DTensor, whose import takes longer than all of this package


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank as soon as one rank says True: how ranks agree to skip, to stop and to save."""
    return bool(global_max(torch.tensor(int(flag), device=device)).item())


def global_count(count: int) -> int:
    """Sum over ranks of a plain number."""
    return int(global_sum(torch.tensor(count, device=_device())).item())


def global_largest(count: int) -> int:
    """Largest over ranks of a plain number."""
    return int(global_max(torch.tensor(count, device=_device())).item())


def from_rank_0(value: T) -> T:
    """Rank 0's value, a plain Python one, on every rank; that of the others is ignored."""
    if world_size() == 1:
        return value
    values = [value if rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]  # type: ignore[return-value]


def on_rank_0(function: Callable[[], T]) -> T:
    """The plain Python result of a function that rank 0 alone calls, or its error, on every rank."""
    result = None
    with together():
        if rank() == 0:
            with alone():
                result = function()
    return from_rank_0(result)  # type: ignore[return-value]


def gather_list(items: list[T]) -> list[T]:
    """The items of all ranks, one rank after another; cheap where none has any."""
    if world_size() == 1 or not any_rank(bool(items), _device()):
        return items
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All ranks get through what is inside, or none: no rank waits for one that failed. No collectives inside.

    Raises:
        FailedElsewhereError: another rank failed; the first that did keeps its error and reports it.
    """
    if world_size() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    outcomes: list[Any] = [None] * world_size()
    dist.all_gather_object(outcomes, None if failure is None else isinstance(failure, (UserError, OSError)))
    failed = [other for other, outcome in enumerate(outcomes) if outcome is not None]
    if failed and failed[0] != rank():
        raise FailedElsewhereError(failed[0], code=2 if outcomes[failed[0]] else 1) from failure
    if failure is not None:
        raise failure


def reported_once(error: Exception) -> Exception:
    """The error to raise where every rank raises the same one: rank 0 reports it."""
    return error if world_size() == 1 or rank() == 0 else FailedElsewhereError(0, code=1)


def wait_for_all() -> None:
    """Go on when every rank is here, however long rank 0 needs for scores and pictures; a rank that died is noticed."""
    if world_size() > 1:
        dist.barrier(group=_patient_group)


def start(*, rank: int, world_size: int, init_method: str, device: torch.device, timeout: timedelta) -> None:
    """Join the process group.

    Args:
        timeout: how long a rank waits for the others, to meet and in a step, before it fails.
    """
    global _patient_group
    store, _, _ = _within(timeout, lambda: next(dist.rendezvous(init_method, rank, world_size, timeout=timeout)))
    store = dist.PrefixStore(_agree_on_attempt(store, rank, world_size, timeout), store)
    # Numbers on the CPU and objects go by gloo; NCCL has tensors on GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    _patient_group = dist.new_group(backend="gloo", timeout=PATIENCE)


def _within(timeout: timedelta, function: Callable[[], T]) -> T:
    """The result of a function that may wait for ever, as torch does for another program at the port of rank 0."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout.total_seconds() + 5)  # its own limit comes first
    if not outcome:
        raise TimeoutError("what is at that port does not answer as rank 0 does")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _agree_on_attempt(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name for this start of the run, which every rank of it knows and no earlier one had.

    torchrun's restarts share its store, where the addresses of processes that are dead would be taken for those of the
    living. Rank 0 makes up a name; every other rank tells its own under it, and goes by it once rank 0 has answered to
    just that one.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", own)
        names = [store.get(f"{own}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{own}/met", " ".join(names))
        return own
    give_up = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < give_up:
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{rank}", own)
        if store.check([f"{attempt}/met"]) and own in store.get(f"{attempt}/met").decode().split():
            return attempt
        time.sleep(0.05)
    raise TimeoutError("rank 0 does not answer")


def lost_contact(error: BaseException) -> bool:
    """True if an error of torch means that another rank has ended, or does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def stop() -> None:
    """Leave the process group."""
    global _patient_group
    _patient_group = None
    dist.destroy_process_group()


def _device() -> str:
    """Where plain numbers are reduced: on the CPU, unless the group was made by somebody else for GPUs alone."""
    return "cuda" if world_size() > 1 and dist.get_backend() == "nccl" else "cpu"
