"""The compiler is imported by whoever compiles, and by nobody before; AdamW without it is torch's."""

import subprocess
import sys

import torch

from selfpatch.optim.late_compiler import AdamW

START_OF_A_RUN = """
import sys
import selfpatch.commands.pretrain
import torch
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.without_values import without_values
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from selfpatch.optim.late_compiler import AdamW, compiler_when_needed

with without_values():
    build_backbone(BackboneConfig(name="vit_tiny_patch16_224"), (32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], fused=True)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
late = ("torch._dynamo", "sympy", "matplotlib", "scipy.optimize", "torch.distributed.fsdp")
assert not [name for name in late if name in sys.modules]

with compiler_when_needed():  # a library that needs more of it than timm does
    from torch._dynamo.utils import counters
assert sys.modules["torch._dynamo.utils"].counters is counters
from torchvision.ops import roi_align
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
"""


def test_a_run_starts_without_what_only_compiling_and_drawing_need():
    done = subprocess.run([sys.executable, "-c", START_OF_A_RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_optimizer_is_torchs():
    """Weights, moments and settings after some steps, and a state that goes from one to the other."""
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), torch.nn.Parameter(torch.ones(3))]
        optimizer = kind([{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}], lr=0.1, fused=True)
        for step in range(3):
            sum((weight * (step + 1)).square().sum() for weight in weights).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert all(weight.grad is None for weight in weights) and torch.is_grad_enabled()
        results.append((weights, optimizer))
    (ours, one), (theirs, other) = results
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert one.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    one.load_state_dict(other.state_dict())
    assert all(
        torch.equal(one.state[a]["exp_avg"], other.state[b]["exp_avg"]) for a, b in zip(ours, theirs, strict=True)
    )
