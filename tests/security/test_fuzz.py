"""Thousands of mutated files from a seeded generator: each is read or refused in words, quickly and in little memory."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save

from tests.security import seeds
from tests.security.mutations import mutated, mutated_tree
from tests.security.readers import trained_state
from tests.security.reading import mistakes, read_all

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def expect_no_mistake(kind: str, folder: Path, *, least_refused: float, may_ask_too_much: bool = False) -> None:
    outcomes = read_all(kind, folder)
    if may_ask_too_much:
        outcomes = [
            o._replace(kind="refused") if o.kind == "memory" and "MemoryError" in o.text else o for o in outcomes
        ]
    assert not mistakes(outcomes), "\n".join(map(str, mistakes(outcomes)[:5]))
    refused = sum(outcome.kind == "refused" for outcome in outcomes) / len(outcomes)
    assert refused >= least_refused, refused  # or mutations do not reach what they are made for
    assert not list(folder.parent.glob("**/canary*"))
    # What the terminal is given passes one place; names and values alone, no content of other files.
    assert not any("root:x:" in outcome.text for outcome in outcomes)


@pytest.mark.parametrize("part", range(2))
def test_images(folder, part):
    """2,000 in two parts: all formats, 16 bits and NumPy's among them, read in every way there is."""
    files = seeds.image_seeds()
    rng = np.random.default_rng(part)
    for i in range(1000):
        ending, content = files[i % len(files)]
        other = files[rng.integers(0, len(files))][1]
        (folder / f"{i:04d}.{ending}").write_bytes(mutated(content, rng, other))
    expect_no_mistake("images", folder, least_refused=0.5)


def test_weights(folder):
    content = seeds.exported_backbone(folder)
    header, data = seeds.split_safetensors(content)
    rng = np.random.default_rng(2)
    for i in range(60):
        whole = seeds.join_safetensors(mutated_tree(header, rng), data)
        if i % 3 == 0:
            whole = seeds.join_safetensors(header | {"__metadata__": mutated_tree(header["__metadata__"], rng)}, data)
        elif i % 3 == 1:
            whole = mutated(content, rng, content[::-1])
        (folder / f"{i:04d}.safetensors").write_bytes(whole)
    expect_no_mistake("weights", folder, least_refused=0.4)


def test_pickled_weights(folder):
    import torch

    tensors = {"state_dict": {f"blocks.{i}.norm.weight": torch.zeros(4) for i in range(3)}, "args": {"lr": 0.1}}
    files = [seeds.pickled(tensors, legacy=legacy) for legacy in (False, True)]
    rng = np.random.default_rng(3)
    for i in range(60):
        (folder / f"{i:04d}.pth").write_bytes(mutated(files[i % 2], rng, files[1 - i % 2]))
    # torch reserves what a storage of its old format says to hold, and fills it from the file: refused, not filled.
    expect_no_mistake("weights", folder, least_refused=0.9, may_ask_too_much=True)


def checkpoint_files() -> dict[str, bytes]:
    state = trained_state()
    values = state.state() | {"images": "x", "num_images": 4, "method": {"seed": 0}, "metrics": {"loss": 1.0}}
    files = {f"{name}.safetensors": save(group) for name, group in state.tensors().items()}
    return files | {"state.json": json.dumps(values).encode()}


def test_checkpoints(folder):
    files = checkpoint_files()
    rng = np.random.default_rng(4)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for i in range(60):
        changed, manifest = dict(files), None
        match i % 4:
            case 0:
                changed["state.json"] = json.dumps(mutated_tree(json.loads(files["state.json"]), rng)).encode()
            case 1:
                manifest = mutated_tree(sums, rng)
            case 2 | 3:
                name = ("optimizer" if i % 4 == 2 else "model") + ".safetensors"
                header, data = seeds.split_safetensors(files[name])
                changed[name] = (
                    seeds.join_safetensors(mutated_tree(header, rng), data)
                    if rng.random() < 0.5
                    else mutated(files[name], rng, files["model.safetensors"])
                )
        seeds.write_checkpoint(folder / f"{i:04d}", changed, manifest)
    expect_no_mistake("checkpoints", folder, least_refused=0.4)


def test_settings(folder):
    tree = seeds.settings_tree()
    rng = np.random.default_rng(5)
    for i in range(250):
        content = json.dumps(mutated_tree(tree, rng)).encode()
        (folder / f"{i:04d}.yaml").write_bytes(mutated(seeds.as_yaml(tree), rng) if i % 2 else content)
    expect_no_mistake("settings", folder, least_refused=0.4)


def test_manifests(folder, tmp_path):
    from PIL import Image

    names = [f"{i}.png" for i in range(4)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    files = seeds.manifest_seeds([f"../{name}" for name in names])
    rows = [{"path": f"../{name}", "label": i} for i, name in enumerate(names)]
    rng = np.random.default_rng(6)
    for i in range(250):
        ending, content = files[i % len(files)]
        if ending == "jsonl" and rng.random() < 0.7:
            content = "".join(json.dumps(row) + "\n" for row in mutated_tree(rows, rng)).encode()
        else:
            content = mutated(content, rng, files[0][1])
        (folder / f"{i:04d}.{ending}").write_bytes(content)
    expect_no_mistake("manifests", folder, least_refused=0.4)


def test_results(folder):
    result = {
        "task": "knn-classification", "protocol": {"name": "dino", "num_neighbors": [20]}, "metrics": {"top-1": 0.5},
        "model": "a", "data": {"root": "x"}, "seconds": 1.0, "versions": {}, "lower_is_better": [], "notes": [], "details": {},
    }  # fmt: skip
    rng = np.random.default_rng(7)
    for i in range(60):
        content = json.dumps(mutated_tree(result, rng)).encode()
        (folder / f"{i:04d}.json").write_bytes(mutated(content, rng) if i % 3 == 0 else content)
    expect_no_mistake("results", folder, least_refused=0.3)
