"""Commands read shards as the folder that they come from, and write nowhere but below OUT."""

import json
from pathlib import Path

import numpy as np
import pytest

from selfpatch.cli import main
from tests.commands.test_embed import images, model  # noqa: F401 a fixture


@pytest.fixture
def shards(images, tmp_path, monkeypatch) -> Path:  # noqa: F811
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    assert main(["shard", str(images), str(tmp_path / "shards")]) == 0
    return tmp_path / "shards"


def test_check_and_embed_of_shards_are_those_of_the_folder(images, shards, tmp_path, capsys):  # noqa: F811
    found = []
    for name, source in (("one", images), ("two", shards)):
        assert main(["check", str(source), "--json", "--cache", str(tmp_path / f"{name}.jsonl")]) == 0
        shown = capsys.readouterr().out.replace(f"{source}/shard-000000.tar", "SOURCE").replace(str(source), "SOURCE")
        found.append(json.loads(shown))
        model(tmp_path, class_token=False)
        arguments = [str(tmp_path / "model.safetensors"), str(source), str(tmp_path / name), "--image-size", "20"]
        assert main(["embed", *arguments, "--device", "cpu"]) == 0
        capsys.readouterr()
    assert found[0] == found[1]
    assert (tmp_path / "one" / "files.txt").read_text() == (tmp_path / "two" / "files.txt").read_text()
    assert np.array_equal(np.load(tmp_path / "one" / "embeddings.npy"), np.load(tmp_path / "two" / "embeddings.npy"))
    assert (
        main(
            ["visualize", str(tmp_path / "model.safetensors"), str(shards), str(tmp_path / "pictures"), "--count", "1"]
        )
        == 0
    )
    assert (tmp_path / "pictures" / "pca.png").is_file()


def test_names_of_others_are_no_place_to_write_to(images, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    (images / "list.txt").write_text(f"../images/a.png\n{images / 'b.png'}\n")
    assert main(["shard", str(images / "list.txt"), str(tmp_path / "shards")]) == 0
    model(tmp_path, class_token=False)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "deep" / "out"
    arguments = [str(tmp_path / "model.safetensors"), str(tmp_path / "shards"), str(out), "--level", "patch"]
    assert main(["embed", *arguments, "--image-size", "16", "--device", "cpu"]) == 0
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert made and all(path.is_relative_to(out) for path in made)
    assert (out / "patches" / "__" / "images" / "a.png.npy").is_file()
