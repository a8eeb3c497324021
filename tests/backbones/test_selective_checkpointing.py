"""Outputs of norms and activation functions are not kept, and gradients stay the same bit for bit."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from selfpatch.backbones import stochastic_depth
from selfpatch.backbones.selective_checkpointing import recompute_outputs
from tests.backbones.small_vits import small_vit


def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"norm": nn.LayerNorm(8), "up": nn.Linear(8, 32), "act": nn.GELU(), "gate": nn.SiLU(), "down": nn.Linear(32, 8)}
    )


def branch(parts: nn.ModuleDict, x: torch.Tensor) -> tuple[torch.Tensor, list[weakref.ref]]:
    """With a view, a product of two, and one input for two layers; and what was made on the way."""
    normed = parts["norm"](x)
    up = parts["up"](normed)
    active = parts["act"](up)
    gated = parts["gate"](up) * active
    flat = gated.flatten(0, 1)[2:]
    storages = [weakref.ref(t.untyped_storage()) for t in (normed, active)]
    return parts["down"](flat), storages


def gradients(parts: nn.ModuleDict, y: torch.Tensor) -> list[torch.Tensor]:
    y.square().sum().backward()
    return [p.grad for p in parts.parameters()]


def test_gradients_are_the_same_and_outputs_are_not_kept():
    plain, ours = layers(), layers()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    expected, kept = branch(plain, x.clone().requires_grad_())
    with recompute_outputs([ours["norm"], ours["act"], ours["gate"]]):
        y, not_kept = branch(ours, x.clone().requires_grad_())
    gc.collect()
    assert all(storage() is not None for storage in kept)
    assert all(storage() is None for storage in not_kept)
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours, y), gradients(plain, expected), strict=True))
    assert not any(module._forward_hooks for module in ours.values())


def test_an_error_within_leaves_no_hooks():
    parts = layers()
    with pytest.raises(RuntimeError), recompute_outputs([parts["norm"]]):
        parts["norm"](torch.randn(3, 7))
    assert not parts["norm"]._forward_hooks
    y, kept = branch(parts, torch.randn(3, 5, 8))
    assert all(storage() is not None for storage in kept)
    assert y.requires_grad


def test_a_pass_without_backward_leaves_nothing():
    """Attention keeps its own output, which must not keep the graph alive."""
    linear = nn.Linear(8, 8)
    with recompute_outputs([]):
        x = linear(torch.randn(1, 2, 5, 8))
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    storages = [weakref.ref(t.untyped_storage()) for t in (x, y)]
    del x, y
    gc.collect()
    assert all(storage() is None for storage in storages)


@pytest.mark.parametrize("changed", ["weight", "input"])
def test_changes_before_the_backward_pass_are_refused(changed):
    parts = layers()
    up = parts["up"](torch.randn(3, 5, 8))
    norm = nn.LayerNorm(32)
    with recompute_outputs([norm]):
        y = parts["down"](norm(up))
    with torch.no_grad():
        (norm.weight if changed == "weight" else up).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_bf16_autocast():
    plain, ours = layers(), layers()
    x = torch.randn(3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, kept = branch(plain, x)
        with recompute_outputs([ours["norm"], ours["act"], ours["gate"]]):
            y, not_kept = branch(ours, x)
    gc.collect()
    assert kept[1]() is not None
    assert not_kept[1]() is None
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours, y), gradients(plain, expected), strict=True))


def test_it_is_off_where_parameters_are_sharded(tmp_path, monkeypatch):
    """FSDP2 frees weights after forward and gathers new ones for backward: versions and storages tell nothing."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    backbone = small_vit("class token").train()
    plain = copy.deepcopy(backbone)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for block in backbone.blocks:
            fully_shard(block, mesh=distributed.init_device_mesh("cpu", (1,)))
        with pytest.warns(UserWarning, match="'selective' has no effect on blocks with sharded parameters"):
            backbone.set_activation_checkpointing("selective")
        monkeypatch.setattr(stochastic_depth, "recompute_outputs", lambda modules: pytest.fail("it is on"))
        images = torch.randn(2, 3, 32, 32)
        for network in (backbone, plain):
            network(images).patch_tokens.square().mean().backward()
        for sharded, whole in zip(backbone.parameters(), plain.parameters(), strict=True):
            gradient = sharded.grad.full_tensor() if hasattr(sharded.grad, "full_tensor") else sharded.grad
            torch.testing.assert_close(gradient, whole.grad)
    finally:
        distributed.destroy_process_group()
