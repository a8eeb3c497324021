"""The commands one after another, as a user would type them, on made-up scenes."""

import json

import pytest
import timm
import torch
from PIL import Image

import selfpatch
from selfpatch.cli import main
from selfpatch.config.io import read_yaml, write_yaml
from selfpatch.demo import tour as demo_command
from selfpatch.demo.scenes import write_scenes
from selfpatch.output.metric_logger import read_metrics
from tests.small_models import tiny_config

STEPS = 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=9, num_train=6, num_val=3, size=48, seed=0)
    return folder


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_yaml(tiny_config(), folder / "config.yaml")
    settings = ["--optim.steps", str(STEPS), "--efficiency.num-workers", "0", "--evaluate.every-steps", "2"]
    settings += ["--evaluate.data", str(scenes / "ade20k"), "--evaluate.image-size", "48", "--run.log-every", "1"]
    command = ["pretrain", str(scenes / "images"), str(folder / "run"), "--config", str(folder / "config.yaml")]
    assert main([*command, *settings]) == 0
    return folder / "run"


def test_pretrain_leaves_settings_curves_scores_pictures_and_a_backbone(run):
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "in_context/mIoU" in line] == [0, 2, 4]
    signals = {name for line in lines for name in line}
    for term in ("dino", "selfpatch"):
        for signal in ("teacher_entropy", "mean_teacher_entropy", "mutual_information", "kl", "prototypes_used"):
            assert f"{term}/{signal}" in signals
    assert {"selfpatch/positive_similarity", "selfpatch/random_similarity", "images_per_second", "data_wait"} <= signals
    for name in ("pca", "similarity", "positives", "curves", "predictions_1"):
        with Image.open(run / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert (run / "config.yaml").is_file()


def test_what_is_printed_before_the_first_step_is_short_and_the_last_line_loads_it(scenes, tmp_path, capsys):
    write_yaml(tiny_config(), tmp_path / "config.yaml")
    command = ["pretrain", str(scenes / "images"), str(tmp_path / "run"), "--config", str(tmp_path / "config.yaml")]
    assert main([*command, "--optim.steps", "2", "--efficiency.num-workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first_step = next(i for i, line in enumerate(lines) if line.startswith("step 1/"))
    assert first_step <= 15

    loading = lines[-1]
    scope = {}
    exec(loading, scope)  # the printed line, in plain timm
    plain = scope["backbone"].eval()
    assert plain.__class__.__module__.startswith("timm.")
    images = torch.randn(2, 3, 40, 72)
    ours = selfpatch.load_backbone(tmp_path / "run")
    with torch.no_grad():
        tokens = plain.forward_features(images)[:, plain.num_prefix_tokens :]
        torch.testing.assert_close(ours(images).patch_tokens, tokens, rtol=1e-5, atol=1e-5)
    assert timm.__version__


@pytest.mark.parametrize("task", ["in-context-segmentation", "linear-segmentation"])
def test_evaluate_writes_the_whole_protocol(task, run, scenes, tmp_path, capsys):
    settings = ["--image-size", "48"]
    if task == "in-context-segmentation":
        settings += ["--memory-size", "200"]
    else:
        settings += ["--stride", "32", "--steps", "3", "--warmup-steps", "1", "--batch-size", "2"]
    command = ["evaluate", str(run), "--task", task, "--data", str(scenes / "ade20k"), "--out", str(tmp_path / "out")]
    assert main([*command, *settings]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result) == {
        "task", "protocol", "metrics", "model", "data", "seconds", "versions", "details", "notes", "lower_is_better",
    }  # fmt: skip
    assert result["task"] == task
    assert result["protocol"]["image_size"] == 48
    assert 0 <= result["metrics"]["mIoU"] <= 1
    assert list((tmp_path / "out" / "pictures").glob("*.png"))
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["exported", "timm"])
def test_other_models_are_scored_alike(kind, run, scenes, tmp_path):
    model = "timm:test_vit"
    if kind == "exported":
        assert main(["export", str(run), str(tmp_path / "exported.safetensors")]) == 0
        model = str(tmp_path / "exported.safetensors")
    command = ["evaluate", model, "--data", str(scenes / "ade20k"), "--out", str(tmp_path / "out")]
    assert main([*command, "--image-size", "64", "--memory-size", "96"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["model"] == model


def test_visualize(run, scenes, tmp_path):
    command = [
        "visualize",
        str(run),
        str(scenes / "images"),
        str(tmp_path / "out"),
        "--count",
        "2",
        "--pixel",
        "3",
        "5",
    ]
    assert main(command) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pca.png", "similarity.png", "positives.png"}


def test_python_does_what_the_commands_do(run, scenes, tmp_path):
    result = selfpatch.pretrain(
        scenes / "images",
        tmp_path / "run",
        config=tiny_config(),
        settings={"optim.steps": STEPS, "efficiency.num_workers": 0, "run.log_every": 1},
    )
    assert result.steps_done == STEPS
    losses = [[m["loss"] for m in read_metrics(f / "metrics.jsonl") if "loss" in m] for f in (tmp_path / "run", run)]
    assert losses[0] == losses[1]
    scored = selfpatch.evaluate(tmp_path / "run", data=scenes / "ade20k", out=tmp_path / "out", protocol="quick")
    assert scored.protocol["name"] == "quick"


def test_demo_in_miniature_shows_random_weights_dino_and_selfpatch_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_command, "NUM_UNLABELED", 70)
    monkeypatch.setattr(demo_command, "NUM_TRAIN", 12)
    monkeypatch.setattr(demo_command, "NUM_VAL", 3)
    monkeypatch.setattr(demo_command, "SCENE_SIZE", 64)
    pretrain = demo_command.pretrain

    def short(images, out, *, settings, **arguments):
        settings = settings | {"optim.steps": 2, "efficiency.num_workers": 0, "evaluate.memory_size": 600}
        return pretrain(images, out, settings=settings, **arguments)

    monkeypatch.setattr(demo_command, "pretrain", short)
    assert main(["demo", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    for row in ("random weights", "DINO, 2 steps", "DINO + SelfPatch, 2 steps"):
        assert sum(row in line and "│" in line for line in rows) == 1, row
    for run, has_selfpatch in (("base", False), ("run", True)):
        objectives = read_yaml(tmp_path / "demo" / run / "config.yaml").objectives
        assert (objectives.selfpatch is not None) == has_selfpatch and objectives.dino is not None
    assert main(["demo", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.count("already done") == 2
