"""Health of training: signals by plain counting, words once per change, broken runs named and healthy ones left alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.health import constant_images, one_prototype, patches_alike
from selfpatch.backbones.backbone import Tokens
from selfpatch.commands.pretrain import pretrain
from selfpatch.config import SelfDistillationConfig
from selfpatch.demo.scenes import write_scenes
from selfpatch.objectives.encoder import Encoded, EncodedViews
from selfpatch.output.metric_logger import read_metrics
from selfpatch.pretraining.health import SYMPTOMS, Health, State, place_share, teacher_distance, token_signals
from selfpatch.pretraining.views import Views
from tests.small_models import tiny_config

GOOD = {
    "crops/std": 1.0, "teacher/distance": 0.01, "patches/similarity": 0.4, "images/spread": 0.3,
    "dino/mutual_information": 0.4, "dino/mean_teacher_entropy": 0.98, "patches/place": 0.1,
}  # fmt: skip
BAD = {
    "blank images": {"crops/std": 0.0},
    "no moving average": {"teacher/distance": 0.0},
    "weights run away": {"teacher/distance": 3.0, "momentum": 0.99},
    "one prototype": {"dino/mean_teacher_entropy": 0.2, "dino/mutual_information": 0.0},
    "patches alike": {"patches/similarity": 0.995},
    "uniform targets": {"dino/mutual_information": 0.01, "dino/mean_teacher_entropy": 1.0},
    "images alike": {"images/spread": 0.001},
    "place alone": {"patches/place": 0.9},
    "norm outliers": {"patches/norm_outliers": 0.1},
}


def test_signals_equal_plain_counting():
    generator = torch.Generator().manual_seed(0)
    images, patches, tokens = torch.randn(2, 5, 3, 4, 4), torch.randn(10, 6, 8, generator=generator), torch.randn(10, 8)
    crops = Encoded(Tokens(None, patches, (2, 3)), tokens)
    found = token_signals(
        Views(images, None), EncodedViews.__new__(EncodedViews, 5, None, crops, None, None, None, None)
    )
    x = patches[:5].double().numpy()  # the first crop of each image
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    pairs = [unit[b, n] @ unit[b, (n - 3) % 6] for b in range(5) for n in range(6)]
    across = [unit[a, n] @ unit[b, n] for a in range(5) for b in range(5) if a != b for n in range(6)]
    directions = tokens[:5].double().numpy()
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    assert found["patches/similarity"].item() == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found["patches/similarity_across"].item() == pytest.approx(np.mean(across), abs=1e-6)
    assert found["images/spread"].item() == pytest.approx(np.sqrt((8 * directions.var(axis=0)).mean()), abs=1e-6)
    assert found["crops/std"].item() == pytest.approx(float(images[0].flatten(2).std(dim=-1).mean()), abs=1e-6)


def test_share_of_place():
    place = torch.randn(1, 6, 4).expand(50, 6, 4)
    assert place_share(place).item() == pytest.approx(1, abs=1e-4)
    assert abs(place_share(torch.randn(400, 6, 4)).item()) < 0.01
    assert place_share(torch.ones(3, 6, 4)) < 0.01 and place_share(torch.randn(1, 6, 4)) == 0


def test_distance_of_the_teacher():
    student, teacher = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    student.weight.data, teacher.weight.data = torch.tensor([[3.0, 0]]), torch.tensor([[3.0, 4.0]])
    assert teacher_distance([(student, teacher)]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("name", BAD)
def test_a_symptom_is_named_once_and_only_if_it_lasts(name):
    health = Health()
    assert health.update(GOOD) is None
    assert health.update(GOOD | BAD[name]) is None  # a single line
    assert health.update(GOOD) is None
    assert health.update(GOOD | BAD[name]) is None
    text = health.update(GOOD | BAD[name])
    expected = next(symptom for symptom in SYMPTOMS if symptom.name == name)
    assert text is not None and f"health {expected.state.name} ({name})" in text
    assert health.state == expected.state
    assert health.update(GOOD | BAD[name]) is None  # once
    assert health.update(GOOD) is None
    assert health.update(GOOD) == "health OK: the last warning no longer holds"
    assert health.state == State.OK


def test_every_symptom_has_a_case():
    assert list(BAD) == [symptom.name for symptom in SYMPTOMS]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=32, num_train=2, num_val=2, size=48, seed=0)
    constant_images(folder / "constant", 32, size=48)
    return folder


def train(images: Path, out: Path, num_steps: int = 10, distillation: SelfDistillationConfig | None = None, **settings):
    config = tiny_config()
    distillation = distillation or SelfDistillationConfig(
        centering="sinkhorn", teacher_temperature=0.015, warmup_teacher_temperature=0.015
    )
    objectives = config.objectives
    assert objectives.dino and objectives.selfpatch
    config = replace(
        config,
        backbone=replace(config.backbone, drop_path=0.0),
        objectives=replace(
            objectives,
            dino=replace(objectives.dino, distillation=distillation),
            selfpatch=replace(objectives.selfpatch, distillation=distillation),
        ),
    )
    settings = {"optim.steps": num_steps, "optim.batch_size": 16, "efficiency.num_workers": 0} | settings
    return pretrain(images, out, config=config, settings=settings)


@pytest.mark.slow
def test_a_healthy_run_says_nothing(scenes, tmp_path, capsys):
    train(scenes / "images", tmp_path / "run", num_steps=24)
    assert "health " not in capsys.readouterr().out
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert {"patches/similarity", "images/spread", "crops/std", "teacher/distance"} <= last.keys()


EQUAL = SelfDistillationConfig(centering="sinkhorn", teacher_temperature=0.5, warmup_teacher_temperature=0.5)
BROKEN = {
    "uniform targets": {"distillation": EQUAL},
    "blank images": {},
    "no moving average": {"teacher.momentum": 0.0, "teacher.momentum_end": 0.0},
    "weights run away": {"optim.lr": 0.3, "optim.clip_norm": 0.0},
    "one prototype": {},
    "patches alike": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_named(name, scenes, tmp_path, capsys, request):
    images = scenes / ("constant" if name == "blank images" else "images")
    for context in {"one prototype": [one_prototype], "patches alike": [patches_alike]}.get(name, []):
        manager = context()
        manager.__enter__()
        request.addfinalizer(lambda manager=manager: manager.__exit__(None, None, None))
    train(images, tmp_path / "run", **BROKEN[name])
    assert f"health COLLAPSED ({name})" in capsys.readouterr().out


def test_a_collapsed_run_stops_if_asked(scenes, tmp_path):
    settings = BROKEN["no moving average"] | {"run.stop_on_collapse": True}
    result = train(scenes / "images", tmp_path / "run", **settings)
    assert result.steps_done < 5
    assert (tmp_path / "run" / "checkpoints" / f"step-{result.steps_done:08}").is_dir()
