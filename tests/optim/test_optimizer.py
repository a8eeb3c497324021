"""Groups, clipping and the moving average against loops over parameters."""

import pytest
import torch
from torch import nn

from selfpatch.optim.optimizer import (
    clip_gradients,
    gradient_norms,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    update_moving_average,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def with_gradients(scale: float) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n, 3)) for n in (2, 5, 1)]
    for i, parameter in enumerate(parameters[:2]):  # the last one has none
        parameter.grad = torch.randn_like(parameter) * scale * (i + 1)
    return parameters


def test_decay_is_for_matrices_and_larger_only():
    net = Net()
    decay, no_decay = parameter_groups(net)
    assert {id(p) for p in decay["params"]} == {id(net.query), id(net.linear.weight)}
    assert {id(p) for p in no_decay["params"]} == {id(net.linear.bias), id(net.norm.weight), id(net.norm.bias)}


def test_clipping_each_tensor_on_its_own():
    parameters = with_gradients(3.0)
    expected = [p.grad * min(1.0, 2.0 / (p.grad.norm().item() + 1e-6)) for p in parameters[:2]]
    clip_gradients(parameters, gradient_norms(parameters), max_norm=2.0, by="parameter")
    for parameter, gradient in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, gradient)


def test_clipping_by_the_common_norm_equals_torch():
    ours, theirs = with_gradients(3.0), with_gradients(3.0)
    clip_gradients(ours, gradient_norms(ours), max_norm=2.0, by="global")
    nn.utils.clip_grad_norm_(theirs, 2.0)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("by", ["parameter", "global"])
def test_small_gradients_and_norm_0_are_left_alone(by):
    for scale, max_norm in ((1e-3, 2.0), (100.0, 0.0)):
        parameters = with_gradients(scale)
        before = [p.grad.clone() for p in parameters[:2]]
        clip_gradients(parameters, gradient_norms(parameters), max_norm=max_norm, by=by)
        assert all(torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=False))


def test_moving_average_touches_the_teacher_only():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    before = teacher.weight.detach().clone(), student.weight.detach().clone()
    update_moving_average([(student, teacher)], 0.9)
    torch.testing.assert_close(teacher.weight.detach(), 0.9 * before[0] + 0.1 * before[1])
    assert torch.equal(student.weight, before[1])


def trained(groups_of, steps: int, state=None) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A small network after some steps of AdamW on the same gradients, and the optimizer's state."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = torch.optim.AdamW(groups_of(module), lr=0.1, weight_decay=0.0)
    if state is not None:
        module.load_state_dict(state[0])
        load_optimizer_state(optimizer, state[1], module)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.sin(parameter.detach() * 3)
        optimizer.step()
    return module, {name: value.clone() for name, value in optimizer_state(optimizer, module).items()}


def by_layer_backwards(module: torch.nn.Module) -> list[dict]:
    return [{"params": list(layer.parameters()), "lr": 0.1} for layer in reversed(list(module))]


@pytest.mark.parametrize("groups_of", [parameter_groups, by_layer_backwards])
def test_moments_follow_their_parameters_into_other_groups(groups_of):
    """Two layers of equal shapes: by position, their moments would change places without an error."""
    unbroken, _ = trained(parameter_groups, 6)
    module, state = trained(parameter_groups, 3)
    assert "0.weight/exp_avg" in state
    resumed, _ = trained(groups_of, 3, (module.state_dict(), state))
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused():
    module, _ = trained(parameter_groups, 0)
    with pytest.raises(ValueError, match=r"another model: it has other\.weight"):
        trained(parameter_groups, 0, (module.state_dict(), {"other.weight/exp_avg": torch.zeros(1)}))
