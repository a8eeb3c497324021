"""Blocks that skip what stochastic depth drops: equal to computing and multiplying by 0; compiled, equal again."""

import copy
import math

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from selfpatch.backbones.stochastic_depth import SUBSET_BLOCKS, SubsetDropPathBlock
from tests.backbones.small_swin import small_swin
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.reference.plain_stochastic_depth import make_plain


def train_step(backbone, images: torch.Tensor, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    out = backbone(images).patch_tokens
    backbone.zero_grad()
    out.square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def assert_equal(ours, plain) -> None:
    assert (ours[0] - plain[0]).norm() <= 1e-6 * plain[0].norm()
    assert ours[1].keys() == plain[1].keys()
    for name, gradient in ours[1].items():
        # The keys' bias has no gradient but rounding.
        if not name.endswith(("qkv.bias", "k_proj.bias")):
            assert (gradient - plain[1][name]).norm() <= 1e-5 * plain[1][name].norm() + 1e-7, name


def small(family: str):
    return small_swin() if family == "Swin" else small_vit(family)


def images_for(backbone, count: int) -> torch.Tensor:
    rows, columns = backbone.patch_size
    return torch.randn(count, 3, 4 * rows, 3 * columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("family", [*FAMILIES, "Swin"])
def test_equals_the_plain_form_with_the_same_samples_dropped(family, checkpointing):
    backbone = small(family).train()
    backbone.set_drop_path(0.6)
    assert all(isinstance(block, SubsetDropPathBlock) for block in backbone.blocks)
    plain = copy.deepcopy(backbone)
    make_plain(plain.blocks)
    assert all(type(block) in SUBSET_BLOCKS for block in plain.blocks)
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    backbone.set_activation_checkpointing(checkpointing)
    images = images_for(backbone, 5)
    for seed in range(2):
        assert_equal(train_step(backbone, images, seed), train_step(plain, images, seed))


def test_all_samples_dropped():
    """Branches still get a gradient, of 0: the optimizer's moments must move as in the plain form."""
    backbone = small_vit("no class token").train()
    backbone.set_drop_path(0.999)
    plain = copy.deepcopy(backbone)
    make_plain(plain.blocks)
    images = images_for(backbone, 2)
    ours, expected = train_step(backbone, images, 0), train_step(plain, images, 0)
    assert not ours[1]["model.blocks.1.mlp.fc1.weight"].any()
    assert_equal(ours, expected)


def test_each_sample_is_dropped_with_its_probability_and_the_rest_scaled():
    block = small_vit("class token", drop_path=0.4).train().model.blocks[1]
    x = torch.randn(2000, 3, 24)
    with torch.no_grad():
        torch.manual_seed(0)
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        change = block(x) - x
        whole = block.eval()(x) - x
    dropped = (change == 0).all(dim=(1, 2))
    assert abs(dropped.float().mean() - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 2000)
    torch.testing.assert_close(change[~dropped], whole[~dropped] / 0.6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "Swin"])
def test_outside_of_training_they_are_timms_blocks(family):
    backbone = small(family)
    backbone.set_drop_path(0.5)
    plain = copy.deepcopy(backbone)
    make_plain(plain.blocks)
    images = images_for(backbone, 2)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).patch_tokens, plain.eval()(images).patch_tokens)


@pytest.mark.slow
# torch.compile looks at what it should not, and says so itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("family", "num_kinds"), [("no class token", 1), ("RoPE", 1), ("parallel blocks", 2), ("Swin", 2)]
)
def test_compiled_they_give_the_same_with_one_graph_a_crop_size(family, num_kinds):
    """However many samples are dropped."""
    torch._dynamo.reset()  # of what other tests compiled in this process
    num_graphs = 0

    def backend(graph, example):
        nonlocal num_graphs
        num_graphs += 1
        return aot_eager(graph, example)

    backbone = small_swin(depths=(1, 2)).train() if family == "Swin" else small_vit(family, depth=3).train()
    backbone.set_drop_path(0.5)
    compiled = copy.deepcopy(backbone)
    compiled.compile_blocks(backend)
    rows, columns = backbone.patch_size
    sizes = [torch.randn(7, 3, n * rows, n * columns, generator=torch.Generator().manual_seed(n)) for n in (2, 3)]
    for seed in range(4):
        for images in sizes:
            assert_equal(train_step(compiled, images, seed), train_step(backbone, images, seed))
    # Of attention and MLP; blocks of another width or with other parts (no DropPath in the first one) are another kind.
    assert num_graphs == 2 * num_kinds * len(sizes)
