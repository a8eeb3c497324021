"""The score before the first step, the best checkpoint that is kept, and RUN@best, RUN@step-N, RUN@last."""

import shutil
from pathlib import Path

import pytest
import torch

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.callbacks import monitor
from selfpatch.commands.callbacks.best_checkpoints import BestCheckpoints
from selfpatch.commands.pretrain import pretrain
from selfpatch.commands.visualize import own_positives
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import read_metrics
from tests.small_models import tiny_config

NUM_STEPS = 6
# mIoU at each step, as the tests want it: falls below the start at step 3, rises above it, falls again.
SCORES = [0.30, 0.31, 0.35, 0.29, 0.28, 0.32, 0.27]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=9, num_train=3, num_val=2, size=48, seed=0)
    return folder


@pytest.fixture
def scripted(monkeypatch):
    """Scores as SCORES has them, whatever the weights; at every step, as a run that goes on computes them too."""
    score = monitor.TrainingMonitor.score

    def scripted_score(self, student_teacher, step):
        evaluator = self._evaluator

        def with_other_miou(*arguments, **settings):
            scores = evaluator(*arguments, **settings)
            return scores._replace(metrics=scores.metrics | {"mIoU": SCORES[step]})

        self._evaluator = with_other_miou
        try:
            return score(self, student_teacher, step)
        finally:
            self._evaluator = evaluator

    monkeypatch.setattr(monitor.TrainingMonitor, "score", scripted_score)


def run(scenes: Path, out: Path, **settings):
    changes = {"optim.steps": NUM_STEPS, "run.save_every": 1, "run.max_to_keep": 1, "efficiency.num_workers": 0}
    changes |= {"evaluate.data": str(scenes / "ade20k"), "evaluate.every_steps": 1, "evaluate.image_size": 48}
    return pretrain(scenes / "images", out, config=tiny_config(), settings=changes | settings)


@pytest.fixture(scope="module")
def a_run(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(scenes, out, **{"run.max_to_keep": 3, "run.keep_best": 1})
    return out


def kept(out: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints_in(out / "checkpoints")]


def test_the_curve_begins_before_the_first_step(a_run):
    steps = [line["step"] for line in read_metrics(a_run / "metrics.jsonl") if "in_context/mIoU" in line]
    assert steps == list(range(NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [2, 6]),
        ({"run.keep_best": 0}, [6]),
        ({"run.keep_best": 3}, [1, 2, 5, 6]),
        ({"run.keep_best": 2, "run.save_every": 100}, [2, 5, 6]),
    ],
)
def test_the_best_stay_beside_the_newest(settings, steps, scenes, tmp_path, capsys):
    run(scenes, tmp_path / "run", **settings)
    assert kept(tmp_path / "run") == steps
    says = "best checkpoint by in_context/mIoU: 35.0 % at step 2" in capsys.readouterr().out
    assert says == (settings.get("run.keep_best") != 0)


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
def test_a_run_that_falls_below_its_start_says_so_once_each_time(scenes, tmp_path, capsys):
    run(scenes, tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if "before training" in line and "below" in line]
    best = f"the best so far, 35.00 at step 2, is kept as {tmp_path / 'run'}@best"
    assert len(lines) == 2
    assert "29.00 is below the 30.00 before training" in lines[0] and best in lines[0]
    assert "27.00 is below the 30.00 before training" in lines[1]


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("step", [2, 4])
def test_which_is_best_survives_a_stop(step, scenes, tmp_path, capsys):
    run(scenes, tmp_path / "run", **{"run.stop_at_step": step})
    run(scenes, tmp_path / "run")
    assert kept(tmp_path / "run") == [2, 6]
    warnings = [line for line in capsys.readouterr().out.splitlines() if "below the 30.00" in line]
    assert len(warnings) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
def test_a_run_that_never_beats_its_start_keeps_the_start(scenes, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SCORES", [0.9, *SCORES[1:]])
    run(scenes, tmp_path / "run")
    assert kept(tmp_path / "run") == [0, 6]
    start, best = load_backbone(f"{tmp_path / 'run'}@step-0"), load_backbone(f"{tmp_path / 'run'}@best")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), best.parameters(), strict=True))


@pytest.mark.slow
def test_a_lower_loss_is_better(scenes, tmp_path):
    run(scenes, tmp_path / "run", **{"run.keep_best_by": "selfpatch/loss", "evaluate.data": None})
    losses = {
        line["step"]: line["selfpatch/loss"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "selfpatch/loss" in line
    }
    assert kept(tmp_path / "run") == sorted({min(losses, key=lambda step: losses[step]), NUM_STEPS})
    assert checkpoint.is_loss("loss") and not checkpoint.is_loss("in_context/mIoU")


def test_a_checkpoint_has_the_score_of_its_own_step_alone():
    best = BestCheckpoints(tiny_config(), Path("nowhere"))
    latest = {"in_context/mIoU": (3, 0.5), "loss": (4, 2.0), "dino/loss": (3, 1.0), "images_per_second": (4, 9.0)}
    assert best.metrics(latest, 4) == {"loss": 2.0}
    assert best.metrics(latest, 3) == {"in_context/mIoU": 0.5, "loss": 2.0, "dino/loss": 1.0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"run.keep_best_by": "in_context/miou"}, "did you mean 'in_context/mIoU'"),
        ({"run.keep_best_by": "koleo/loss"}, "selfpatch/loss"),
        ({"run.keep_best": 1, "evaluate.data": None}, "evaluate.data DATA"),
    ],
)
def test_no_such_score(settings, says, scenes, tmp_path):
    with pytest.raises(UserError, match=says):
        run(scenes, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


# MODEL


def test_the_last_checkpoint_is_what_the_run_exported(a_run):
    x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    whole, last = load_backbone(a_run), load_backbone(f"{a_run}@last")
    same = load_backbone(f"{a_run}@step-00000006")
    earlier = load_backbone(f"{a_run}@step-5")
    with torch.no_grad():
        expected = whole(x).patch_tokens
        assert torch.equal(last(x).patch_tokens, expected)
        assert torch.equal(same(x).patch_tokens, expected)
        assert not torch.equal(earlier(x).patch_tokens, expected)
    assert (last.mean, last.std, last.final_norm_from_aggregator) == (whole.mean, whole.std, True)
    assert "step 6" in last.notes[0]


def test_a_run_starts_from_a_checkpoint_of_another(scenes, a_run, tmp_path):
    settings = {"optim.steps": 1, "efficiency.num_workers": 0, "optim.lr": 1e-12, "teacher.momentum": 1.0}
    pretrain(scenes / "images", tmp_path / "run", config=tiny_config(), settings=settings, init_from=f"{a_run}@step-5")
    ours, theirs = load_backbone(tmp_path / "run"), load_backbone(f"{a_run}@step-5")
    assert torch.equal(ours.model.patch_embed.proj.weight, theirs.model.patch_embed.proj.weight)


def test_positives_are_those_of_the_run(a_run):
    assert own_positives(f"{a_run}@last") == own_positives(a_run)


@pytest.mark.parametrize("which", ["step-400", "step-", "newest", "5", ""])
def test_an_unknown_step_lists_those_that_there_are(which, a_run):
    steps = ", ".join(f"{a_run}@step-{step}" for step in kept(a_run))
    with pytest.raises(UserError) as refusal:
        load_backbone(f"{a_run}@{which}")
    assert str(refusal.value).endswith(f"There are: {a_run}@last, {a_run}@best, {steps}")


def test_a_run_without_scores_has_no_best(a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("keep_best_by: in_context/mIoU", "keep_best_by: koleo/loss"))
    with pytest.raises(UserError, match=r"no checkpoint of this run has a koleo/loss.*@step-6"):
        load_backbone(f"{tmp_path / 'run'}@best")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoints"):
        load_backbone(f"{tmp_path / 'run'}@last")


def test_a_damaged_checkpoint_is_refused(a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "run")
    newest = checkpoint.checkpoints_in(tmp_path / "run" / "checkpoints")[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="checksum differs"):
        load_backbone(f"{tmp_path / 'run'}@last")


def test_a_name_with_an_at_of_its_own(a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "me@home")
    shutil.copytree(a_run, tmp_path / "me@home@best")
    load_backbone(tmp_path / "me@home")
    load_backbone(f"{tmp_path / 'me@home'}@step-5")
    assert not load_backbone(f"{tmp_path / 'me@home'}@best").notes  # the folder of that name
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(tmp_path / "nobody@home")


def test_a_checkpoint_is_read_with_the_epsilon_of_its_run(scenes, tmp_path):
    run(scenes, tmp_path / "run", **{"optim.steps": 1, "evaluate.data": None, "backbone.norm_eps": 1e-2})
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        whole, last = (load_backbone(model)(x).patch_tokens for model in (tmp_path / "run", f"{tmp_path / 'run'}@last"))
    assert torch.equal(last, whole)
