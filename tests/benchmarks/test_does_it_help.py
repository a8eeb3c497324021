"""The comparison of methods: cells that are cut and go on, tables from the results."""

from pathlib import Path

import pytest

from benchmarks.does_it_help import __main__ as command
from benchmarks.does_it_help import cells, documents, regimes
from benchmarks.does_it_help.methods import BASE, METHODS
from benchmarks.does_it_help.results import merge, read_results, write_results
from benchmarks.time_limit import OutOfTimeError
from selfpatch.commands.callbacks import monitor
from selfpatch.config.io import to_dict
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.evaluation.classification import knn_classification
from selfpatch.evaluation.segmentation import overclustering
from selfpatch.export import export_timm
from selfpatch.recipes import find_recipe
from tests.small_models import tiny_config, tiny_student_teacher

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("method", METHODS)
def test_methods_differ_from_the_base_in_objectives_alone(method):
    base = regimes.replace(find_recipe("dino-small"), aggregator=None)
    config = METHODS[method].build(base, 10.0)
    changed = {name for name, value in to_dict(config).items() if value != to_dict(base)[name]}
    assert changed <= {"objectives", "aggregator"}
    assert config.objectives.dino == base.objectives.dino
    assert bool(changed) == (method != BASE)


def record(method: str, seed: int, **scores: float) -> dict:
    return {"method": method, "seed": seed, "scores": {name: {"mIoU": value} for name, value in scores.items()}}


def test_cells_of_two_machines_are_joined(tmp_path):
    first = {"scenes-report": {"budget": {"steps": 3}, "cells": {"dino-0": record("dino", 0, linear=0.1)}}}
    second = {
        "scenes-report": {
            "budget": {"steps": 3},
            "cells": {"dino-1": record("dino", 1, linear=0.2), "dino-0": record("dino", 0, davis=0.3)},
        }
    }
    write_results(merge(first, second), tmp_path / "results.json")
    joined = read_results(tmp_path / "results.json")["scenes-report"]["cells"]
    assert joined["dino-0"]["scores"] == {"linear": {"mIoU": 0.1}, "davis": {"mIoU": 0.3}}
    assert joined["dino-1"]["scores"] == {"linear": {"mIoU": 0.2}}
    second["scenes-report"]["budget"]["came_later"] = 1
    assert merge(first, second)["scenes-report"]["budget"] == {"steps": 3, "came_later": 1}
    second["scenes-report"]["budget"]["steps"] = 4
    with pytest.raises(UserError, match="steps: 3 -> 4"):
        merge(first, second)


TINY = "backbone.embed_dim=24 backbone.depth=1 backbone.num_heads=2 optim.batch_size=4 optim.steps=4 crops.num_local=1"


# Nobody looks at them here.
DRAWINGS = (
    (monitor, "visualize"), (monitor, "draw_curves"), (overclustering, "write_prediction_sheets"),
    (knn_classification, "draw_answers"), (knn_classification, "draw_confusion"),
)  # fmt: skip


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """A call of the command in seconds."""
    for name in regimes.SIZES:
        monkeypatch.setitem(regimes.SIZES, name, regimes.Sizes(48, 2, 20))
    for module, drawing in DRAWINGS:
        monkeypatch.setattr(module, drawing, lambda *_, **__: [])

    def call(name: str, *more: str) -> int:
        return command.main(
            [
                "--regime", "scenes", "--out", str(tmp_path / name), "--num-scenes", "9", "6", "3", "--seeds", "3",
                "--methods", "dino", "selfpatch-recolored-late", "--device", "cpu", "--results",
                str(tmp_path / f"{name}.json"), "--set", "efficiency.num_workers=0", *TINY.split(), *more,
            ]
        )  # fmt: skip

    return call


def test_a_cut_comparison_goes_on_to_the_same_numbers(mini, tmp_path, monkeypatch, capsys):
    assert mini("whole") == 0
    # 1. Cut in the training of the first method, then in its scores, then not at all.
    pretrain, calls = cells.pretrain, []

    def cut_pretrain(*given, **named):
        calls.append(given)
        if len(calls) == 1:
            raise OutOfTimeError
        return pretrain(*given, **named)

    monkeypatch.setattr(cells, "pretrain", cut_pretrain)
    assert mini("cut") == 3
    original, scored = cells.write_record, []

    def cut_record(file, content):
        original(file, content)
        scored.append(file)
        if len(scored) == 3:
            raise OutOfTimeError

    monkeypatch.setattr(cells, "write_record", cut_record)
    assert mini("cut") == 3
    unfinished = read_results(tmp_path / "cut.json")["scenes-report"]["cells"]
    assert min(len(cell["scores"]) for cell in unfinished.values()) == 2
    monkeypatch.setattr(cells, "write_record", original)
    assert mini("cut") == 0

    # 2. The same cells, scores and pixels; what is done is not done again.
    whole, cut = (read_results(tmp_path / f"{name}.json")["scenes-report"] for name in ("whole", "cut"))
    assert whole["budget"] == cut["budget"]
    assert list(whole["cells"]) == list(cut["cells"]) == [
        "dino-3", "selfpatch-recolored-late-3", "start-3"
    ]  # fmt: skip
    for name, cell in whole["cells"].items():
        assert cell["scores"] == cut["cells"][name]["scores"]
    assert len(calls) == 3
    mini("cut")
    assert len(calls) == 3

    # 3. The tables, and nothing of this machine in the file.
    assert (
        "| + SelfPatch 0.1, as `dino-selfpatch-small`: targets of a recolored crop, from 0.4 of the run on | 1 |"
        in capsys.readouterr().out
    )
    assert str(tmp_path) not in (tmp_path / "cut.json").read_text()


def test_weights_are_continued(mini, tmp_path):
    """The start is the weights themselves, once; its scores are those before training of every seed."""
    write_scenes(tmp_path / "data", num_unlabeled=9, num_train=9, num_val=3, size=48, seed=0)
    export_timm(tiny_student_teacher(tiny_config()).teacher.export_backbone(), tmp_path / "weights.safetensors")
    given = ["--regime", "continued", "--weights", str(tmp_path / "weights.safetensors"), "--methods", "dino"]
    given += ["--images", str(tmp_path / "data/images"), "--labels", str(tmp_path / "data/ade20k"), "--seeds", "3", "4"]
    small = ["crops.global_size=32", "crops.local_size=16", "optim.steps=3", "optim.batch_size=4"]
    assert mini("out", *given, "--set", *small, "efficiency.num_workers=0") == 0
    cells = read_results(tmp_path / "out.json")["continued-report"]["cells"]
    assert list(cells) == ["dino-3", "dino-4", "start-3"]
    near = pytest.approx(cells["start-3"]["scores"]["in-context 1"]["mIoU"], abs=0.1)
    assert cells["dino-3"]["scores"]["in-context 1"]["mIoU"] == near
    assert cells["dino-3"]["training"]["images_seen"] == 12


def test_another_budget_is_refused(mini, capsys):
    assert mini("out", "--limit-minutes", "0") == 3
    assert mini("out", "--set", "optim.steps=5", "optim.batch_size=4") == 2
    assert "cannot be compared" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--regime", "continued"], "needs a model"),
        (["--regime", "scratch"], "needs --images"),
        (["--regime", "scenes", "--images", "here"], "makes its own images"),
        (["--merge", "nowhere.json"], "no file nowhere.json"),
    ],
)
def test_what_cannot_be_done_is_told(given, said, tmp_path, capsys):
    arguments = [*given, "--out", str(tmp_path), "--results", str(tmp_path / "results.json")]
    assert command.main(arguments) == 2
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_documents_are_those_of_the_results(document):
    text = document.read_text()
    assert text == documents.with_tables(text, ROOT), (
        "write the tables anew: python -m benchmarks.does_it_help --docs README.md docs/*.md"
    )
