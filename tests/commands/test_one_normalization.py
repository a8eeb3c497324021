"""One truth about normalization: training, scores, pictures and the exported file have the same mean and std."""

from pathlib import Path

import pytest
import torch

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.pretrain import pretrain
from selfpatch.config.io import read_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.export import export_timm
from selfpatch.pretraining import views
from tests.small_models import tiny_config, tiny_student_teacher

HALF = (0.5, 0.5, 0.5)
SETTINGS = {"optim.steps": 2, "efficiency.num_workers": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=5, num_train=1, num_val=1, size=48, seed=0)
    return folder / "images"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An exported backbone whose images are normalized with 0.5."""
    backbone = tiny_student_teacher(tiny_config()).teacher.export_backbone()
    backbone.mean = backbone.std = HALF
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    export_timm(backbone, path)
    return path


@pytest.fixture
def normalized_with(monkeypatch) -> list:
    seen, normalize = [], views.normalize
    monkeypatch.setattr(
        views, "normalize", lambda crops, mean, std: seen.append((mean, std)) or normalize(crops, mean, std)
    )
    return seen


def test_mean_and_std_of_the_crops_reach_the_exported_file(images, normalized_with, tmp_path):
    given = {"crops.mean": (0.1, 0.2, 0.3), "crops.std": (0.4, 0.5, 0.6)}
    pretrain(images, tmp_path / "run", config=tiny_config(), settings=SETTINGS | given)
    backbone = load_backbone(tmp_path / "run")
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert set(normalized_with) == {((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))}


def test_a_run_takes_the_normalization_of_the_weights_it_starts_from(
    images, weights, normalized_with, tmp_path, capsys
):
    def run(**settings) -> None:
        pretrain(images, tmp_path / "run", config=tiny_config(), settings=SETTINGS | settings, init_from=weights)

    run(**{"run.stop_at_step": 1})
    assert f"as {weights} was trained" in capsys.readouterr().out
    crops = read_yaml(tmp_path / "run" / "config.yaml").crops
    assert (crops.mean, crops.std) == (HALF, HALF)
    run()  # goes on with the same
    assert load_backbone(tmp_path / "run").mean == HALF
    assert set(normalized_with) == {(HALF, HALF)}


def test_another_normalization_than_that_of_the_weights_is_warned_of(images, weights, tmp_path, capsys):
    given = {"crops.mean": (0.1, 0.2, 0.3)}
    pretrain(images, tmp_path / "run", config=tiny_config(), settings=SETTINGS | given, init_from=weights)
    output = capsys.readouterr().out
    assert "warning: crops.mean is (0.1, 0.2, 0.3)" in output and "(0.5, 0.5, 0.5)" in output
    assert "warning: crops.std" not in output


def test_pixels_are_normalized_by_the_definition(images, tmp_path):
    crops = torch.full((1, 1, 3, 4, 4), 51, dtype=torch.uint8)
    assert torch.allclose(views.normalize(crops, HALF, (0.25, 0.25, 0.25)), torch.tensor((51 / 255 - 0.5) / 0.25))
