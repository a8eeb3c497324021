"""The benchmark of a GPU runs from end to end where there is none, so that it will run where there is one."""

import json
import sys

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_miniature(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", "--miniature", "--no-compile"])
    gpu.main()
    results = json.loads((tmp_path / "gpu-miniature.json").read_text(encoding="utf-8"))
    assert all(row["ours"]["images_per_second"] > 0 and row["times_plain"]["median"] > 0 for row in results["steps"])
    assert "Fed by JPEGs" in capsys.readouterr().out
