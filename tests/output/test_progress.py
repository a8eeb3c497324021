"""In a notebook progress is a line that is replaced; elsewhere nothing of IPython is asked for."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from selfpatch.output import notebook
from selfpatch.output.notebook import notebook_line
from selfpatch.output.progress import PhaseProgressBar, TrainingProgress, track

METRICS = {"loss": 1.0, "dino/loss": 1.0, "images_per_second": 5.0, "data_wait": 0.1, "memory_mb": 1024.0}


@pytest.fixture
def cell(monkeypatch) -> list[list[str]]:
    """The lines of a cell's output, each with all texts that it had."""
    lines: list[list[str]] = []

    def display(content: dict, *, raw: bool, display_id: bool) -> SimpleNamespace:
        lines.append([content["text/plain"]])
        return SimpleNamespace(update=lambda content, raw: lines[-1].append(content["text/plain"]))

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    displays.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return lines


def test_a_loop_is_one_line_with_the_whole_at_its_end(cell, capsys):
    assert list(track(iter("abc"), "reading\x1b", 3)) == ["a", "b", "c"]
    assert [(line[0], line[-1]) for line in cell] == [(r"reading\x1b 0/3", r"reading\x1b 3/3")]
    assert capsys.readouterr() == ("", "")


def test_texts_that_come_too_fast_are_passed_over(cell, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL_S", 1000)
    list(track(range(50), "reading", 50))
    assert cell == [["reading 0/50", "reading 50/50"]]


def test_phases_and_training(cell, capsys, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL_S", 0)
    report = PhaseProgressBar("scoring")
    report(1, 2)
    report(2, 2)
    assert cell == [["scoring 1/2", "scoring 2/2"]]
    progress = TrainingProgress(0, 20)
    progress.show(9, METRICS)
    progress.say("a word of health")
    progress.show(19, METRICS)
    progress.close()
    assert [text.split("  ")[0] for text in cell[1]] == ["step 10/20", "step 20/20"]
    assert capsys.readouterr().out == "a word of health\n"


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_no_notebook(shell, monkeypatch, capsys):
    """Plain Python that has imported IPython, and IPython in a terminal."""
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert notebook_line() is None
    TrainingProgress(0, 20).show(9, METRICS)
    assert capsys.readouterr().out.startswith("step 10/20")
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_line() is None
