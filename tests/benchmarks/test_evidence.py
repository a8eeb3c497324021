"""The evidence script's own parts: what it keeps, how it is cut and goes on, what it tells."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import evidence
from selfpatch.backbones.build import build_backbone
from selfpatch.backbones.pretrained import load_vit
from selfpatch.commands.callbacks import monitor as watch
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.config.io import read_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.export import export_timm
from tests.small_models import tiny_config, tiny_student_teacher

TINY = [
    "backbone.name=vit_tiny_patch16_224",
    "backbone.patch_size=8",
    "backbone.embed_dim=24",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "optim.batch_size=4",
    "efficiency.num_workers=0",
]


def test_a_backbone_in_half_precision_sees_nearly_the_same(tmp_path):
    backbone = tiny_student_teacher(tiny_config()).teacher.export_backbone()
    export_timm(backbone, tmp_path / "whole.safetensors")
    evidence.keep_half(tmp_path / "whole.safetensors", tmp_path / "half.safetensors")
    assert all(value.dtype == torch.float16 for value in load_file(tmp_path / "half.safetensors").values())
    half = load_vit(tmp_path / "half.safetensors")
    assert half.final_norm_from_aggregator
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(half(images).patch_tokens, backbone(images).patch_tokens, rtol=0.01, atol=0.01)


def test_the_time_is_up():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(evidence.OutOfTimeError), evidence.time_limit(0.1 / 60):
        time.sleep(20)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_method_is_cut_goes_on_and_is_told(tmp_path, monkeypatch):
    """Stopped between its parts: the start is the initial weights, and what is kept is not made again."""
    write_scenes(tmp_path / "scenes", num_unlabeled=9, num_train=4, num_val=2, size=48, seed=0)
    given = ["--images", str(tmp_path / "scenes/images"), "--labeled", str(tmp_path / "scenes/ade20k")]
    given += ["--crop-size", "48", "--device", "cpu", "--steps", "10", "--seed", "3", "--set", *TINY]
    arguments = evidence.parse([str(tmp_path), *given])
    folder = tmp_path / "dino-selfpatch"
    steps = evidence.find_budget(tmp_path, arguments.images, arguments)

    def train() -> None:
        evidence.train_method("dino-selfpatch", folder, arguments.images, arguments.labeled, steps, arguments)

    monkeypatch.setattr(watch, "visualize", lambda *_, **__: [])  # eleven times, and not looked at here
    monkeypatch.setattr(watch, "draw_curves", lambda *_: None)
    pretrain, stops = evidence.pretrain, []

    def counted(*positional, settings, **named):
        stops.append(settings["run.stop_at_step"])
        if len(stops) == 2:
            raise evidence.OutOfTimeError
        return pretrain(*positional, settings=settings, **named)

    monkeypatch.setattr(evidence, "pretrain", counted)
    with pytest.raises(evidence.OutOfTimeError):
        train()
    train()
    assert stops == [1, 5, 5, 10]

    config = read_yaml(folder / "run" / "config.yaml")
    torch.manual_seed(3)
    initial = build_backbone(config.backbone, (48, 48), mean=IMAGENET_MEAN, std=IMAGENET_STD).model.state_dict()
    start, end = (load_file(folder / f"{stage}.safetensors") for stage in ("start", "end"))
    assert all(torch.equal(start[name], value.half()) for name, value in initial.items())
    assert not torch.equal(start["blocks.0.mlp.fc1.weight"], end["blocks.0.mlp.fc1.weight"])

    figures = evidence.figures_of("dino-selfpatch", folder)
    assert list(figures["in_context"]) == [str(step) for step in range(11)]
    assert figures["images_seen"] == 40
    summary = {"device": "cpu", "versions": {"torch": "x"}, "seed": 3, "methods": {"dino-selfpatch": figures}}
    assert "10 of 10 | 40 |" in evidence.markdown(summary)
