"""The only file that asks for a rank. Without a process group every function is the identity."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


def global_sum(x: Tensor) -> Tensor:
    """Sum over ranks of a tensor that every rank holds, without gradient; the input is left alone."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def global_mean(x: Tensor) -> Tensor:
    """Mean over ranks of a tensor that every rank holds, without gradient; the input is left alone."""
    return global_sum(x) / world_size()


def global_logsumexp(x: Tensor) -> Tensor:
    """log of the sum over ranks of exp(x), for a tensor that every rank holds, without gradient."""
    if world_size() == 1:
        return x
    largest = x.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest + global_sum((x - largest).exp()).log()


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, each of which holds equally many, one rank after another, without gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank as soon as one rank says True: how ranks agree to skip, to stop and to save."""
    if world_size() == 1:
        return flag
    agreed = torch.tensor(int(flag), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return bool(agreed.item())
