"""AdamW's parameter groups, clipping, frozen parameters and the teacher's moving average."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models import group_parameters
from torch import Tensor, nn

from selfpatch.distributed import any_rank, global_sum, is_sharded, local_tensor
from selfpatch.errors import UserError


def parameter_groups(
    module: nn.Module,
    *,
    lr_scales: Mapping[nn.Parameter, float] | None = None,
    late: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Groups of parameters that train, by weight decay and learning rate; without arguments there are two.

    Weight decay is for matrices and larger, none for biases and 1-D tensors, as DINO's get_params_groups has it. A
    group's `decays` says which it is, `lr_scale` is its part of the learning rate, `is_late` says whether it follows
    the schedule of what starts late.

    Args:
        lr_scales: parts of the learning rate, 1 where there is none.
        late: the part of `module` that starts late.
    """
    late_parameters = set() if late is None else set(late.parameters())
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {(True, 1.0, False): [], (False, 1.0, False): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias")
            key = (decays, (lr_scales or {}).get(parameter, 1.0), parameter in late_parameters)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "decays": decays, "lr_scale": lr_scale, "is_late": is_late}
        | ({} if decays else {"weight_decay": 0.0})
        for (decays, lr_scale, is_late), parameters in groups.items()
    ]


def layer_lr_scales(model: Any, layer_decay: float) -> dict[nn.Parameter, float]:
    """Learning rate of every parameter of a timm model, as a part of the whole: `layer_decay` ** (layers above it).

    Layers are timm's: the stem with class token, registers and positions, then every block. Swin's downsampling goes
    with the block after it, the final norm with the last block, which has the whole.

    Source: timm's param_groups_layer_decay, after BEiT's.
    """
    layers: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {parameter: layer_decay ** (last - layers.get(name, last)) for name, parameter in model.named_parameters()}


def set_schedules(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, late_factor: float = 1.0
) -> None:
    """Set what changes with the step. `late_factor` is the part of the learning rate of what starts late."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] * (late_factor if group["is_late"] else 1.0)
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state of every parameter as "parameter name/state name"; groups and their settings are not part of it."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Load what `optimizer_state` gave, whatever groups the parameters are in by now.

    Raises:
        UserError: it has a parameter that the module lacks, or has in another shape.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        by_parameter.setdefault(parameter, {})[key] = value
    names = {parameter: name for name, parameter in module.named_parameters()}
    if unknown := by_parameter.keys() - set(names.values()):
        raise UserError(f"the optimizer's state is of another model: it has {min(unknown)}, which this one lacks")
    for parameter, name in names.items():
        for value in by_parameter.get(name, {}).values():
            if value.ndim > 0 and value.shape != parameter.shape:  # a count of steps has no axes
                shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
                raise UserError(f"the optimizer's state is of another model: {name} has {shapes}")
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: by_parameter[name] for index, name in enumerate(ordered) if name in by_parameter}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def positional_names(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """State that was saved as "position.state name", by the order of `parameter_groups`, under parameters' names.

    Raises:
        UserError: a name is no position of a parameter.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    ordered = [names[parameter] for group in parameter_groups(module) for parameter in group["params"]]
    positions = [(name.partition("."), value) for name, value in tensors.items()]
    if odd := [position for (position, _, _), _ in positions if position not in map(str, range(len(ordered)))]:
        raise UserError(f"the optimizer's state is of another model: it has {odd[0]!r} of {len(ordered)} parameters")
    return {f"{ordered[int(position)]}/{key}": value for (position, _, key), value in positions}


def gradient_norms(parameters: Sequence[nn.Parameter]) -> Float[Tensor, " P"]:
    """Norm of every parameter's gradient, for those that have one."""
    norms = torch.stack(torch._foreach_norm(_gradients(parameters)))
    if any(is_sharded(p) for p in parameters):
        norms = global_sum(norms.square()).sqrt()
    return norms


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Gradients of those that have one; of sharded parameters, this rank's shards."""
    return [local_tensor(p.grad) for p in parameters if p.grad is not None]


def clip_gradients(parameters: Sequence[nn.Parameter], norms: Float[Tensor, " P"], *, max_norm: float, by: str) -> None:
    """Scale gradients in place so that no norm is above `max_norm`; 0 leaves them alone.

    `by` "parameter" clips each tensor on its own, a habit of DINO's code; "global" all of them by their common norm.
    """
    if max_norm == 0:
        return
    if by == "global":
        norms = norms.norm().expand_as(norms)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(_gradients(parameters), list(factors.unbind()))


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    loss: Float[Tensor, ""],
    *,
    max_norm: float,
    by: str = "global",
    frozen: Iterable[nn.Parameter] = (),
) -> bool:
    """Clip the gradients that are there, step, and forget them; False, and no change, if the step was skipped.

    A step whose loss or gradient is not finite on any rank is skipped on all of them. Gradients of `frozen` parameters
    count when clipping and are then dropped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norms = gradient_norms(parameters)
    finite = bool(torch.isfinite(norms).all() & torch.isfinite(loss))
    if any_rank(not finite, loss.device):
        optimizer.zero_grad(set_to_none=True)
        return False
    clip_gradients(parameters, norms, max_norm=max_norm, by=by)
    for parameter in frozen:
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True


@torch.no_grad()
def update_moving_average(ema_pairs: list[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, for every parameter of every pair (student, teacher)."""
    student: list[Tensor] = [local_tensor(p) for pair in ema_pairs for p in pair[0].parameters()]
    teacher: list[Tensor] = [local_tensor(p) for pair in ema_pairs for p in pair[1].parameters()]
    # teacher + (1 - momentum) * (student - teacher): the same sum, in one pass over the weights.
    torch._foreach_lerp_(teacher, student, 1 - momentum)
