"""A study from one command: cells that are cut go on, a ranking with intervals, the best model; nothing leaks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.study import cells as cells_module
from selfpatch.commands.study import held_out
from selfpatch.commands.study.budget import Runs
from selfpatch.commands.study.content import describe_cell
from selfpatch.commands.study.folder import StudyFolder
from selfpatch.commands.study.plan import PlannedCandidate, Timing
from selfpatch.commands.study.study import StudyResult
from selfpatch.data.manifest import open_images
from selfpatch.errors import UserError
from selfpatch.training.loop import DivergenceError
from tests.commands.study.conftest import CONFIG
from tests.small_models import tiny_config

COLUMNS = ["in-context 1", "in-context 1/4", "linear 1", "linear 1/4"]
CELLS = [("as-is", 0), ("continue-dino", 0), ("continue-dino", 1)]


def no_answer(study, *_) -> StudyResult:
    return StudyResult(study.folder.path, None, [], {})


def test_study_json_has_the_cells_the_ranking_and_the_best(finished):
    """What a page needs; scores are those of the cells, and shares of too few labels are left out (9 images, 1/64)."""
    content = json.loads((finished.out / "study.json").read_text())
    assert content["state"] == "done"
    assert content["columns"] == COLUMNS
    assert [(cell["candidate"], cell["seed"]) for cell in content["cells"]] == CELLS
    assert {cell["state"] for cell in content["cells"]} == {"done"}
    assert content["progress"]["done"] == content["progress"]["total"] == 3
    for ranked in content["ranking"]:
        own = [cell["scores"] for cell in content["cells"] if cell["candidate"] == ranked["candidate"]]
        for column in COLUMNS:
            assert ranked["scores"][column]["by_seed"] == [scores[column] for scores in own]
        headline = np.mean([[scores["in-context 1"], scores["linear 1"]] for scores in own])
        assert ranked["mIoU"] == pytest.approx(headline)
    means = [ranked["mIoU"] for ranked in content["ranking"]]
    assert means == sorted(means, reverse=True)
    against = {ranked["candidate"]: ranked["against_reference"] for ranked in content["ranking"]}
    assert content["reference"] == "as-is" and against["as-is"] is None
    continued = against["continue-dino"]
    assert continued["low"] <= continued["mean"] <= continued["high"]
    assert continued["verdict"] in ("better", "worse", "undecided")
    assert "2 seeds" in content["interval"] and "6 validation images are few" in content["interval"]
    table = (finished.out / "ranking.md").read_text()
    assert all(f"| {name} |" in table for name in against)
    assert all(f"{sentence[1:]}." in table for sentence in content["sentences"])


def test_the_best_is_the_file_of_its_run(finished):
    content = finished.content
    best = content["best"]
    assert best["candidate"] == content["ranking"][0]["candidate"]
    assert best["seed"] == 0  # the first, not the one with the best score
    own = load_file(finished.out / "best/backbone.safetensors")
    run = finished.out / f"runs/{best['candidate']}-0/backbone.safetensors"
    theirs = load_backbone(run if run.exists() else content["init_from"]).model.state_dict()
    assert own.keys() == theirs.keys()
    assert all((own[name] == theirs[name]).all() for name in own)
    card = (finished.out / "best/README.md").read_text()
    assert "timm.create_model" in card
    assert str(finished.out) not in card


def test_all_that_train_have_one_budget(finished, run_study, tmp_path):
    result = run_study(tmp_path / "out", dry_run=True, candidates=("as-is", "continue-dino", "dino-small", "moco-v3"))
    settings = [entry["settings"] for entry in result.content["candidates"].values() if entry["trains"]]
    assert len(settings) == 3
    for group, name in (("crops", "global_size"), ("crops", "local_size"), ("optim", "batch_size")):
        assert len({values[group][name] for values in settings}) == 1
    assert [values["crops"]["num_local"] for values in settings] == [1, 1, 0]  # MoCo v3 has none
    continued, scratch, _ = (values["backbone"] for values in settings)
    # From scratch it is the network of the weights, but for what was set; what continues keeps all of it.
    assert (continued["depth"], scratch["depth"]) == (2, 1)
    assert continued["embed_dim"] == scratch["embed_dim"] == 32
    assert continued["patch_size"] == scratch["patch_size"] == 8
    for name in ("continue-dino-0", "continue-dino-1"):
        run = json.loads((finished.out / f"cells/{name}.json").read_text())
        assert run["training"]["steps"] == 2
        assert json.loads((finished.out / f"runs/{name}/images.json").read_text())["num_images"] == 24


def test_a_cut_study_goes_on_and_does_nothing_twice(cut):
    assert cut.signal == 15
    assert cut.trained == ["continue-dino-0", "continue-dino-0", "continue-dino-1"]
    assert cut.num_written == len(CELLS) * len(COLUMNS) + 2  # each score once, and each training
    assert [content["state"] for content in cut.unfinished] == ["running", "running"]
    states = [[cell["state"] for cell in content["cells"]] for content in cut.unfinished]
    assert states == [["done", "waiting", "waiting"], ["done", "running", "waiting"]]
    assert cut.unfinished[0]["plan"] == cut.result.content["plan"]


def test_validation_images_never_enter_pretraining(data, run_study, tmp_path, capsys):
    """A copy under another name, one that was compressed again, and one of a validation image that no score reads."""
    images = tmp_path / "images"
    shutil.copytree(data / "images", images)
    validation = sorted((data / "ade20k/images/validation").iterdir())
    shutil.copy(validation[0], images / "renamed.jpg")
    shutil.copy(validation[0], images / "again.jpg")
    Image.open(validation[1]).save(images / "compressed.jpg", quality=60)
    shutil.copy(validation[5], images / "last.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfpatch.commands.study.study.do_cells", lambda *_: None)
        patch.setattr("selfpatch.commands.study.study.conclude", no_answer)
        run_study(tmp_path / "out", images=images, max_images=2)
        assert "4 images are left out of pretraining, of 28: 3 with the content" in capsys.readouterr().out
        lines = (tmp_path / "out/left_out.txt").read_text().splitlines()
        found = {tuple(line.split("\t")[::2]) for line in lines}
        assert found == {
            ("again.jpg", "same"), ("renamed.jpg", "same"), ("last.jpg", "same"), ("compressed.jpg", "alike")
        }  # fmt: skip
        left = open_images(tmp_path / "out/training_images.jsonl")
        names = {left.path(index).name for index in range(len(left))}
        assert names == {path.name for path in (data / "images").iterdir()}
        # Without the search for images that look alike, files of the same content are found all the same.
        run_study(tmp_path / "exact", images=images, near_duplicates=False)
    assert len((tmp_path / "exact/left_out.txt").read_text().splitlines()) == 3


def test_a_training_that_diverges_is_told_and_not_ranked(tmp_path, monkeypatch, capsys):
    """The study goes on without it."""

    def diverge(*_, **__):
        raise DivergenceError("20 steps in a row were skipped")

    monkeypatch.setattr(cells_module, "pretrain", diverge)
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    planned = PlannedCandidate("dino-small", 1, 5, Timing(1, 1, 1))
    runs = Runs({"dino-small": tiny_config()}, {}, 5, {})
    study = cells_module.Study(folder, runs, None, COLUMNS, 24, None, None, torch.device("cpu"))
    (record,) = cells_module.do_cell(study, cells_module.Cell("dino-small", 0, planned))
    assert record["failed"] == "20 steps in a row were skipped"
    assert cells_module.is_done(folder.read_cell("dino-small", 0), COLUMNS)
    assert describe_cell("dino-small", 0, record, done=True)["state"] == "failed"
    assert "failed and is not ranked" in capsys.readouterr().out


def test_patterns_choose_images_once(run_study, tmp_path, data):
    """They are compared with names below IMAGES, not with those of the list that trainings read."""
    settings = (*CONFIG.set, "images.exclude=[scene_0000*]")
    result = run_study(tmp_path / "out", dry_run=True, set=settings)
    assert result.content["data"]["num_images"] == result.content["plan"]["budget"]["num_images"] == 14
    assert all(
        not config["settings"]["images"]["exclude"]
        for config in result.content["candidates"].values()
        if config["trains"]
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(run_study, tmp_path, capsys):
    names = ("as-is", "continue-dino", "dino-small")
    result = run_study(tmp_path / "out", dry_run=True, is_timed=True, steps=None, hours=1.0, candidates=names)
    shown = capsys.readouterr().out
    assert "continue-dino" in shown and "equal for all that train: 24 images" in shown
    assert not (tmp_path / "out").exists()
    plan = result.content["plan"]
    steps = {entry["name"]: entry["steps"] for entry in plan["candidates"]}
    assert steps["as-is"] == 0
    assert steps["continue-dino"] == steps["dino-small"] > 50
    assert plan["seconds"] <= 3600
    assert result.best_file is None


def test_without_weights_there_is_the_floor(data, run_study, tmp_path, monkeypatch):
    """Random weights of the same network, other ones for every seed."""
    from selfpatch.commands.study import study as study_module

    found = {}

    def one_cell(study, plan, content):
        for seed in (0, 1):
            cell = next(c for c in cells_module.all_cells(plan) if (c.candidate, c.seed) == ("random", seed))
            found[seed] = cells_module.cell_backbone(study, cell)

    monkeypatch.setattr(study_module, "do_cells", one_cell)
    monkeypatch.setattr(
        study_module, "time_candidates", lambda request, _: dict.fromkeys(request.names, Timing(1, 1, 1))
    )
    monkeypatch.setattr(study_module, "conclude", no_answer)
    settings = study_module.StudyConfig(
        steps=2, linear_steps=2, set=("crops.global-size=32", "optim.batch-size=4", "backbone.embed-dim=24",
        "backbone.depth=1", "backbone.num-heads=2", "backbone.patch-size=8", "efficiency.num-workers=0"),
    )  # fmt: skip
    study_module.study(data / "images", tmp_path / "out", labels=data / "ade20k", config=settings, device="cpu")
    content = json.loads((tmp_path / "out/study.json").read_text())
    assert list(content["candidates"]) == ["random", "dino-small", "dino-selfpatch-small"]
    first, second = (next(iter(found[seed].model.parameters())) for seed in (0, 1))
    assert first.shape == second.shape
    assert not first.equal(second)


def test_too_few_images_are_left(data):
    images = open_images(data / "images")
    left_out = {index: (Path("val.jpg"), True) for index in range(17)}
    with pytest.raises(UserError, match=r"17 of 24 images are validation images .* leaves 7 to train on"):
        held_out.require_enough_images(images, left_out, data / "ade20k")
    del left_out[0]
    held_out.require_enough_images(images, left_out, data / "ade20k")


@pytest.mark.slow
def test_killed_twice_it_goes_on_to_the_same_numbers(finished, data, tmp_path):
    """kill -9 after the first cell and within the second; the numbers are those of a study that was not killed."""
    command = [
        sys.executable, "-m", "selfpatch", "study", data / "images", tmp_path / "out", "--labels", data / "ade20k",
        "--init-from", data / "weights.safetensors", "--steps", 2, "--seeds", 1, "--label-shares", 1, 4, 64,
        "--linear-steps", 2, "--image-size", 48, "--device", "cpu", "--candidates", *CONFIG.candidates, "--set", *CONFIG.set,
    ]  # fmt: skip
    command = [str(word) for word in command]
    study_file, killed_at = tmp_path / "out/study.json", []
    moments = (
        lambda content: content["progress"]["done"] == 1,
        lambda content: any("training" in cell for cell in content["cells"]),
    )
    for is_time in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None:
            time.sleep(0.05)
            content = json.loads(study_file.read_text()) if study_file.exists() else {}
            if "progress" in content and is_time(content):
                os.killpg(process.pid, signal.SIGKILL)
        killed_at.append(process.wait())
    assert killed_at == [-signal.SIGKILL] * 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content = json.loads(study_file.read_text())
    assert content["state"] == "done"
    of_first_seed = finished.content["cells"][:2]
    assert [cell["scores"] for cell in content["cells"]] == [cell["scores"] for cell in of_first_seed]
