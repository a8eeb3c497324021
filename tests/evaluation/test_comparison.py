import csv
import json

import pytest

from selfpatch.cli import main
from selfpatch.evaluation.comparison import as_csv, as_markdown, compare, read_result
from selfpatch.evaluation.result import Result


def write(folder, *, model, task="linear-segmentation", metrics=None, **protocol):
    protocol = {"name": "dinov3", "steps": 40_000, "num_val_images": 7} | protocol
    Result(task, protocol, metrics or {"mIoU": 0.5, "aAcc": 0.7}, model, "data", 1.0, {}).write(folder / "result.json")
    return folder / "result.json"


def read(*paths):
    return [(path, read_result(path)) for path in paths]


@pytest.fixture
def four(tmp_path):
    return [
        write(tmp_path / "a1", model="a", metrics={"mIoU": 0.25, "aAcc": 0.5}),
        write(tmp_path / "b1", model="b", metrics={"mIoU": 0.3, "aAcc": 0.4}),
        write(tmp_path / "b2", model="b", task="video-segmentation", name="dino", metrics={"J&F-Mean": 0.6}),
        write(tmp_path / "c2", model="c", task="video-segmentation", name="dino", metrics={"J&F-Mean": 1 / 3}),
    ]


def test_a_row_a_model_and_a_column_a_task(four):
    table = compare(read(*four))
    assert table.rows == ["a", "b", "c"]
    assert [str(c) for c in table.columns] == [
        "linear-segmentation (dinov3) mIoU",
        "video-segmentation (dino) J&F-Mean",
    ]
    assert table.values == [[0.25, None], [0.3, 0.6], [None, 1 / 3]]
    assert [c.metric for c in compare(read(*four), metrics=["all"]).columns] == ["mIoU", "aAcc", "J&F-Mean"]
    assert compare(read(*four), metrics=["aAcc"]).values == [[0.5], [0.4], [None]]


def test_markdown_and_csv(four):
    table = compare(read(*four))
    lines = as_markdown(table).splitlines()
    assert lines[2:] == ["| a | 25.00 |  |", "| b | **30.00** | **60.00** |", "| c |  | 33.33 |"]
    rows = list(csv.reader(as_csv(table).splitlines()))
    assert rows[3] == ["c", "", repr(1 / 3)] and len(rows[0]) == 3


def bold(table):
    """The cells in bold, column by column."""
    rows = [line.strip("| ").split(" | ")[1:] for line in as_markdown(table).splitlines()[2:]]
    return [[cell.strip("*") for cell in column if "**" in cell] for column in zip(*rows, strict=True)]


def test_the_task_declares_of_which_metrics_less_is_better(tmp_path):
    """A class called "tooth decay" or "spread" is no decay of a score, and "error" may be one."""
    for model, value in (("a", 0.25), ("b", 0.75)):
        metrics = {"IoU/tooth decay": value, "spread/cream cheese": value, "error": value}
        result = Result("task", {"name": "p"}, metrics, model, "data", 1.0, {}, lower_is_better=["error"])
        result.write(tmp_path / model / "result.json")
    table = compare(read(*tmp_path.glob("*/result.json")), metrics=["all"])
    assert bold(table) == [["75.00"], ["75.00"], ["25.00"]]


def test_results_of_earlier_versions_are_read(tmp_path):
    """They list no metrics of which less is better, and some settings had other names."""
    videos = {"J&F-Mean": 0.5, "J-Decay": 0.1, "F-Decay": 0.3, "J&F/Decay_1": 0.2}
    clusters = {"mIoU/K=500": 0.3, "spread/K=500": 0.1, "IoU/spread/K=500": 0.1}
    for model in ("a", "b"):
        for task, metrics in (("video-segmentation", videos), ("overclustering", clusters), ("upernet", {"mIoU": 0.5})):
            metrics = {name: value + (0.25 if model == "b" else 0) for name, value in metrics.items()}
            path = write(tmp_path / model / task, model=model, task=task, metrics=metrics, out_indices=[2, 5, 8, 11])
            if model == "a":
                content = json.loads(path.read_text())
                del content["lower_is_better"]
                content["protocol"]["taps"] = content["protocol"].pop("out_indices")
                path.write_text(json.dumps(content))
    paths = sorted(tmp_path.glob("*/*/result.json"))
    table = compare(read(*paths), metrics=["all"])
    assert {c.metric for c in table.lower_is_better} == {"J-Decay", "F-Decay", "spread/K=500"}
    best = dict(zip((c.metric for c in table.columns), bold(table), strict=True))
    assert best["J-Decay"] == ["10.00"] and best["spread/K=500"] == ["10.00"] and best["J&F/Decay_1"] == ["45.00"]
    assert best["IoU/spread/K=500"] == ["35.00"] and best["mIoU"] == ["75.00"]


@pytest.mark.parametrize(("setting", "value"), [("steps", 500), ("num_val_images", 8), ("name", "custom")])
def test_two_protocols_never_share_a_column(four, tmp_path, setting, value):
    other = write(tmp_path / "d", model="d", **{setting: value})
    with pytest.raises(ValueError, match=f"linear-segmentation by different protocols(.|\n)*{setting}: .* -> {value}"):
        compare(read(*four, other))
    table = compare(read(*four, other), split_protocols=True)
    assert len(table.columns) == 3 and len({(c.task, c.protocol) for c in table.columns}) == 3
    assert table.values[3] == [None, None, 0.5]


def test_several_results_of_one_model_are_told_apart(four, tmp_path):
    other = write(tmp_path / "a3", model="a", metrics={"mIoU": 0.26})
    assert compare(read(*four, other)).rows == [f"a [{four[0].parent}]", "b", "c", f"a [{other.parent}]"]


def test_one_name_for_several_weights_is_several_rows(four, tmp_path):
    for i, weights in enumerate(("1a", "2b")):
        details = {"model": {"fingerprint": weights}}
        path = tmp_path / f"d{i}" / "result.json"
        Result("linear-segmentation", {"name": "dinov3"}, {"mIoU": i / 4}, "d", "data", 1.0, {}, details).write(path)
    assert compare(read(tmp_path / "d0/result.json", tmp_path / "d1/result.json")).rows == ["d (1a)", "d (2b)"]


def test_names_are_not_read_as_markup(four, tmp_path, capsys):
    metrics = {"mIoU": 0.5, "IoU/[/b]": 0.25}
    write(tmp_path / "a9", model="[red]run[/b]", metrics=metrics)
    assert main(["compare", str(tmp_path / "a9"), "--metrics", "all"]) == 0
    printed = capsys.readouterr().out
    assert "[red]run[/b]" in printed and "IoU/[/b]" in printed


def test_the_command(four, tmp_path, capsys):
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "t.md")]) == 0
    printed = capsys.readouterr().out
    assert "30.00" in printed and "dinov3" in printed
    assert (tmp_path / "t.md").read_text().count("\n") == 5
    write(tmp_path / "d", model="d", steps=3)
    assert main(["compare", str(tmp_path)]) == 2
    assert "different protocols" in capsys.readouterr().err


def test_a_table_too_wide_for_the_terminal_is_turned(four, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    metrics = {f"a metric of some length {i}": i / 10 for i in range(6)}
    write(tmp_path / "wide", model="e", metrics=metrics)
    assert main(["compare", str(tmp_path / "wide"), "--metrics", "all"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed and "linear-" in printed
    rows = [line for line in printed.splitlines() if any(f" {10 * i}.00 " in line for i in range(1, 6))]
    assert len(rows) == 5


def test_bad_input(four, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    empty = tmp_path / "empty"
    empty.mkdir()
    for text in (
        "{",
        "[]",
        "{}",
        json.dumps(json.loads(four[0].read_text()) | {"metrics": {"mIoU": "high"}}),
        "[" * 100_000,
    ):
        broken.write_text(text)
        assert main(["compare", str(broken)]) == 2
        assert "is not a result of `selfpatch evaluate`" in capsys.readouterr().err
    for place in (empty, tmp_path / "nowhere"):
        assert main(["compare", str(place)]) == 2
        assert "has none below it" in capsys.readouterr().err
    assert main(["compare", str(four[0]), "--metrics", "mIuO"]) == 2
    assert "no result has a metric mIuO; there are: aAcc, mIoU" in capsys.readouterr().err
    assert main(["compare", str(four[0]), "--out", str(tmp_path / "t.txt")]) == 2
    assert "must end in .html (a page to look at), .md (a table in Markdown) or .csv" in capsys.readouterr().err
    assert main(["compare"]) == 2
