"""A folder of images whose name is no UTF-8 goes through every command that reads it."""

import os
from pathlib import Path

from selfpatch.cli import main
from selfpatch.config.io import read_yaml, write_yaml
from selfpatch.demo.scenes import write_scenes
from tests.small_models import tiny_config


def test_pretrain_visualize_evaluate_and_compare(tmp_path, capsys):
    odd = b"\x1b[2J\xfe two\nlines"
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + odd))
    write_scenes(folder, num_unlabeled=5, num_train=3, num_val=2, size=48, seed=0)
    images, data, run = folder / "images", folder / "ade20k", tmp_path / "run"
    (images / os.fsdecode(odd + b".png")).write_text("no picture")
    (images / "notes.txt").touch()
    write_yaml(tiny_config(), tmp_path / "config.yaml")
    settings = [
        "--optim.steps",
        "2",
        "--efficiency.num-workers",
        "0",
        "--evaluate.data",
        str(data),
        "--run.max-bad-fraction",
        "0.5",
    ]
    settings += ["--evaluate.image-size", "48", "--evaluate.every-steps", "2"]
    assert main(["pretrain", str(images), str(run), "--config", str(tmp_path / "config.yaml"), *settings]) == 0
    assert read_yaml(run / "config.yaml").evaluate.data == data
    assert (run / "config.yaml").read_text(encoding="utf-8").startswith("# selfpatch ")
    assert main(["visualize", str(run), str(images), str(tmp_path / "pictures"), "--device", "cpu"]) == 0
    arguments = ["--task", "in-context-segmentation", "--data", str(data), "--out", str(tmp_path / "scores")]
    assert main(["evaluate", str(run), *arguments, "--image-size", "48", "--device", "cpu"]) == 0
    assert main(["compare", str(tmp_path / "scores"), "--out", str(tmp_path / "table.md")]) == 0
    said = "".join(capsys.readouterr())
    said.encode()
    assert "\x1b" not in said and "1 file was left out: 1 .txt" in said
