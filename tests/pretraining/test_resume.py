"""A run that was stopped and goes on ends as if nothing had happened, bit for bit: at every step, with other workers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfpatch.commands.pretrain import pretrain
from selfpatch.config import PretrainConfig, SelfPatchConfig
from selfpatch.config.io import write_yaml
from selfpatch.config.objectives.gram import GramConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.demo.scenes import write_scenes
from selfpatch.output import checkpoint
from selfpatch.output.metric_logger import read_metrics
from selfpatch.pretraining import train_step as update
from tests.small_models import HEAD, tiny_config

NUM_STEPS = 6


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=13, num_train=3, num_val=2, size=48, seed=0)
    return folder


def run(scenes: Path, out: Path, config: PretrainConfig | None = None, **settings):
    """Six steps over two epochs of 13 images, with scores on the way."""
    changes = {"optim.steps": NUM_STEPS, "run.save_every": 2, "run.max_to_keep": 2, "efficiency.num_workers": 0}
    changes |= {"evaluate.data": str(scenes / "ade20k"), "evaluate.every_steps": 3, "evaluate.image_size": 48}
    return pretrain(scenes / "images", out, config=config or tiny_config(), settings=changes | settings)


@pytest.fixture(scope="module")
def unbroken(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    run(scenes, out)
    return out


@pytest.fixture(scope="module")
def stopped_at_4(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stopped"
    run(scenes, out, **{"run.stop_at_step": 4, "evaluate.data": None})
    return out


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    newest, _ = checkpoint.load_latest(out / "checkpoints")
    assert newest.state["step"] == NUM_STEPS
    return newest.tensors["model"] | {f"optimizer.{k}": v for k, v in newest.tensors["optimizer"].items()}


def assert_same_run(out: Path, unbroken: Path) -> None:
    ours, theirs = final_weights(out), final_weights(unbroken)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    backbones = [load_file(folder / "backbone.safetensors") for folder in (out, unbroken)]
    assert all(torch.equal(backbones[0][name], backbones[1][name]) for name in backbones[0])
    losses = [
        [(m["step"], m["loss"]) for m in read_metrics(f / "metrics.jsonl") if "loss" in m] for f in (out, unbroken)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_stopped_at_every_step(step, scenes, unbroken, tmp_path):
    result = run(scenes, tmp_path / "run", **{"run.stop_at_step": step})
    assert result.steps_done == step
    result = run(scenes, tmp_path / "run", **{"efficiency.num_workers": step % 3})
    assert result.steps_done == NUM_STEPS
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("step", range(NUM_STEPS))
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_at_any_step_saves_and_the_same_command_goes_on(step, number, scenes, unbroken, tmp_path, monkeypatch):
    apply_gradients = update.apply_gradients

    def signalled(student_teacher, optimizer, loss, at, **settings):
        if at == step:
            os.kill(os.getpid(), number)
        return apply_gradients(student_teacher, optimizer, loss, at, **settings)

    with monkeypatch.context() as context:
        context.setattr(update, "apply_gradients", signalled)
        result = run(scenes, tmp_path / "run")
    assert result.steps_done == step + 1
    assert result.stopped_by == (number if step + 1 < NUM_STEPS else None)  # then it was too late to stop anything
    run(scenes, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_with_colors_augmented_on_the_device(scenes, tmp_path):
    """Stopped inside an epoch, then gone on with another number of workers."""
    on_device = {"efficiency.color_augmentation": "device"}
    run(scenes, tmp_path / "unbroken", **on_device)
    run(scenes, tmp_path / "run", **on_device, **{"run.stop_at_step": 2})
    run(scenes, tmp_path / "run", **on_device, **{"efficiency.num_workers": 1})
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_a_damaged_newest_checkpoint_costs_two_steps_and_no_more(scenes, unbroken, tmp_path, capsys):
    run(scenes, tmp_path / "run", **{"run.stop_at_step": 4})
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    run(scenes, tmp_path / "run")
    assert "checksum differs" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", unbroken)


def removed(name):
    return lambda state, tensors: state.pop(name)


def changed(name, value):
    return lambda state, tensors: state.update({name: value})


@pytest.mark.parametrize(
    "damage",
    [
        removed("step"), removed("method"), removed("format"), changed("step", "4"), changed("step", True),
        changed("format", None), changed("counters", [1]), changed("counters", {"other": 1}),
        lambda state, tensors: tensors.pop("optimizer"),
        lambda state, tensors: tensors["model"].popitem(),
        lambda state, tensors: tensors["optimizer"].update({k: torch.zeros(3, 1, 2) for k in tensors["optimizer"]}),
    ],
)  # fmt: skip
def test_a_newest_checkpoint_that_this_run_cannot_have_written_is_passed_over(
    damage, scenes, stopped_at_4, tmp_path, capsys
):
    """Every file as its checksum says, and no traceback: the run goes on from the one before."""
    shutil.copytree(stopped_at_4, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    found = checkpoint.load(folder / "step-00000004")
    damage(found.state, found.tensors)
    checkpoint.save(folder, 4, found.tensors, found.state, keep=2)
    result = run(scenes, tmp_path / "run", **{"run.stop_at_step": 3, "evaluate.data": None})
    assert result.steps_done == 3
    assert "step-00000002 at step 2" in capsys.readouterr().out


def test_a_checkpoint_of_a_newer_version_is_not_passed_over(scenes, stopped_at_4, tmp_path):
    shutil.copytree(stopped_at_4, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    found = checkpoint.load(folder / "step-00000004")
    checkpoint.save(folder, 4, found.tensors, found.state | {"format": 99}, keep=2)
    with pytest.raises(ValueError, match="newer version"):
        run(scenes, tmp_path / "run")


def test_one_wrong_letter_in_the_newest_state_is_damage_and_not_other_images(scenes, stopped_at_4, tmp_path, capsys):
    shutil.copytree(stopped_at_4, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json"
    fingerprint = checkpoint.load(file.parent).state["images"]
    other = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
    file.write_text(file.read_text().replace(fingerprint, other))
    run(scenes, tmp_path / "run", **{"run.stop_at_step": 3, "evaluate.data": None})
    assert "step-00000002 at step 2" in capsys.readouterr().out


def test_a_finished_run_says_so_and_changes_nothing(scenes, unbroken, capsys):
    before = final_weights(unbroken)
    run(scenes, unbroken)
    assert "already done its 6 steps" in capsys.readouterr().out
    assert all(torch.equal(before[name], value) for name, value in final_weights(unbroken).items())


def test_resume_from_another_runs_checkpoint(scenes, unbroken, tmp_path):
    run(scenes, tmp_path / "first", **{"run.stop_at_step": 4})
    changes = {"optim.steps": NUM_STEPS, "efficiency.num_workers": 0}
    pretrain(
        scenes / "images",
        tmp_path / "second",
        config=tiny_config(),
        settings=changes,
        resume=tmp_path / "first" / "checkpoints" / "step-00000004",
    )
    ours, theirs = final_weights(tmp_path / "second"), final_weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resume_takes_over_what_is_derived_and_how_prototypes_were_frozen(scenes, tmp_path):
    """As OUT's own run does: normalization, batch size, and "always" in an earlier version's words."""
    frozen = "objectives.dino.head.freeze_prototypes_epochs"
    run(scenes, tmp_path / "first", **{"run.stop_at_step": 2, "crops.mean": (0.5, 0.5, 0.5), frozen: 10_000})
    result = pretrain(
        scenes / "images",
        tmp_path / "second",
        config=tiny_config(),
        settings={"optim.steps": NUM_STEPS, "run.stop_at_step": 3, "optim.batch_size": "auto", frozen: "always"},
        resume=tmp_path / "first" / "checkpoints" / "step-00000002",
    )
    assert result.steps_done == 3
    state = checkpoint.load_state(tmp_path / "second" / "checkpoints" / "step-00000003")
    assert state["method"]["crops"]["mean"] == [0.5, 0.5, 0.5]
    assert state["method"]["objectives"]["dino"]["head"]["freeze_prototypes_epochs"] == 10_000


def test_init_from_starts_student_and_teacher_with_those_weights(scenes, unbroken, tmp_path):
    settings = {"optim.steps": 1, "optim.lr": 1e-12, "teacher.momentum": 1.0, "efficiency.num_workers": 0}
    config = tiny_config()
    result = pretrain(scenes / "images", tmp_path / "run", config=config, settings=settings, init_from=unbroken)
    ours, theirs = load_file(result.backbone_file), load_file(unbroken / "backbone.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith("norm."))


@pytest.mark.slow
def test_a_gram_teacher_is_saved_and_gone_on_with(scenes, tmp_path):
    """Copied after step 2 (of 3 per epoch), compared with after step 3, refreshed after step 5."""
    config = tiny_config()
    gram = GramConfig(teacher_epoch=2 / 3, start_epoch=1.0, refresh_steps=2)
    config = replace(config, objectives=replace(config.objectives, gram=gram))
    run(scenes, tmp_path / "unbroken", config, **{"evaluate.data": None})
    for step in (2, 3, 4, 5, NUM_STEPS):
        run(scenes, tmp_path / "run", config, **{"run.stop_at_step": step, "evaluate.data": None})
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.slow
def test_the_gram_teacher_of_a_continued_run_is_the_source_as_it_was_given(scenes, unbroken, tmp_path):
    config = tiny_config()
    config = replace(config, objectives=replace(config.objectives, gram=GramConfig()))
    source = unbroken / "backbone.safetensors"
    pretrain(scenes / "images", tmp_path / "run", config=config, init_from=source, settings={"optim.steps": 2})
    found, _ = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    gram_teacher = "objectives.gram.gram_teacher.backbone.model."
    for name, value in load_file(source).items():
        if not name.startswith("norm."):  # the source took it from its aggregator: this backbone has none
            assert torch.equal(found.tensors["model"][gram_teacher + name], value)
            assert not torch.equal(found.tensors["model"]["student.backbone.model." + name], value)


@pytest.mark.slow
def test_sigterm_to_the_command_exits_with_143_and_goes_on(scenes, unbroken, tmp_path):
    """The real thing once: a process of its own, with data workers, stopped from outside."""
    out = tmp_path / "run"
    write_yaml(tiny_config(), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "selfpatch", "pretrain", str(scenes / "images"), str(out)]
    command += ["--config", str(tmp_path / "config.yaml"), "--optim.steps", "100000", "--efficiency.num-workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("step 3/") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "the same command goes on from there" in rest
    newest, _ = checkpoint.load_latest(out / "checkpoints")
    assert newest.state["step"] >= 3


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(scenes, tmp_path):
    run(scenes, tmp_path / "run", **{"run.stop_at_step": 2})
    for file in (tmp_path / "run" / "checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"x")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="no checkpoint of .* can be read"):
        run(scenes, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_with_other_settings_is_refused(scenes, tmp_path):
    run(scenes, tmp_path / "first", **{"run.stop_at_step": 2})
    with pytest.raises(ValueError, match=r"optim.lr: 0.001 -> 0.5"):
        pretrain(
            scenes / "images",
            tmp_path / "second",
            config=tiny_config(),
            settings={"optim.steps": NUM_STEPS, "optim.lr": 0.5},
            resume=tmp_path / "first" / "checkpoints" / "step-00000002",
        )
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["worker", "device"])
def test_with_targets_from_other_views(where, scenes, tmp_path):
    """Recolored crops and boxes come from the image's own random numbers as well."""
    views = {
        "efficiency.color_augmentation": where,
        "objectives.selfpatch": SelfPatchConfig(head=HEAD, crops="global", view="recolored"),
        "objectives.ibot": IBOTConfig(head=HEAD, view="other"),
    }
    run(scenes, tmp_path / "unbroken", **views)
    run(scenes, tmp_path / "run", **views, **{"run.stop_at_step": 2})
    run(scenes, tmp_path / "run", **views, **{"efficiency.num_workers": 1})
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_a_checkpoint_written_after_the_next_step_is_that_of_its_own(scenes, unbroken, tmp_path, monkeypatch):
    """On a slow disk: step 4 is written when step 5 has changed the weights, and the optimizer's state."""
    save, apply_gradients, stepped = checkpoint.save, update.apply_gradients, threading.Event()

    def late(folder, step, *arguments, **settings):
        assert step != 4 or stepped.wait(30)
        return save(folder, step, *arguments, **settings)

    def told(student_teacher, optimizer, loss, step, **settings):
        applied = apply_gradients(student_teacher, optimizer, loss, step, **settings)
        if step == 4:
            stepped.set()
        return applied

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(update, "apply_gradients", told)
    run(scenes, tmp_path / "run")
    ours, theirs = (checkpoint.load(f / "checkpoints" / "step-00000004") for f in (tmp_path / "run", unbroken))
    assert ours.state["step"] == 4
    for group, tensors in theirs.tensors.items():
        assert not [name for name, value in tensors.items() if not torch.equal(value, ours.tensors[group][name])]
    assert_same_run(tmp_path / "run", unbroken)
