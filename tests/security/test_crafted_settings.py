"""Settings, checkpoints and folders of runs by somebody who means harm."""

import hashlib
import json
import os

import pytest

from selfpatch.config.io import MAX_BYTES
from selfpatch.errors import UserError
from selfpatch.output import checkpoint
from selfpatch.output.folder_lock import FolderLock
from selfpatch.output.metric_logger import MetricLogger
from tests.security.reading import read_all
from tests.security.seeds import write_checkpoint

SETTINGS = {
    "a tag that calls": "!!python/object/apply:os.mkdir ['CANARY']",
    "a tag that makes": "seed: !!python/object/new:os.mkdir ['CANARY']",
    "a tag that imports": "seed: !!python/module:os",
    "a name": "seed: !!python/name:os.mkdir",
    "a tag of its own": "seed: !include /etc/passwd",
    "binary": "seed: !!binary AAAA",
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    ),
    "an alias of itself": "seed: &a [*a]",
    "a merge": "a: &a {seed: 1}\n<<: *a",
    "deep lists": "[" * 60_000,
    "deep groups": "{a: " * 30_000,
    "deep blocks": "- " * 60_000,
    "deep keys": "? " * 60_000,
    "a key that is a list": "? [a, b]\n: 1",
    "a number of 5,000 digits": "seed: " + "1" * 5_000,
    "a number of base 60": "seed: 1" + ":1" * 10_000,
    "infinity": "optim: {lr: .inf}",
    "not a number": "optim: {lr: .nan}",
    "a number too large": "optim: {lr: 1e999}",
    "a date": "seed: 2001-12-14t21:59:43.10-05:00",
    "an unknown setting": "sede: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "a list": "- 1",
    "nothing": "",
    "zero byte": "seed: \0",
    "too large": "# " + "a" * MAX_BYTES,
}  # fmt: skip


def test_every_crafted_settings_file(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    names = {f"{i:02d}.yaml": name for i, name in enumerate(SETTINGS)}
    for file, name in names.items():
        (folder / file).write_text(SETTINGS[name].replace("CANARY", str(tmp_path / "canary")))
    outcomes = read_all("settings", folder)
    assert {names[o.name]: o for o in outcomes if o.kind != "refused"} == {}
    assert not (tmp_path / "canary").exists()


def test_a_config_of_a_huge_backbone_is_refused_before_it_is_built():
    from dataclasses import replace

    from selfpatch.backbones.build import build_backbone
    from tests.small_models import tiny_config

    for change in ({"depth": 10**9}, {"embed_dim": 10**9}, {"patch_size": 10**6}):
        with pytest.raises(UserError, match="beyond all that can be built"):
            build_backbone(replace(tiny_config().backbone, **change), (32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("name", ["../step-00000010/model.safetensors", "/etc/passwd", "..", "a/../state.json"])
def test_a_manifest_stays_in_its_folder(name, tmp_path):
    other = tmp_path / "step-00000010"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other")
    sums = {name: hashlib.sha256(b"other").hexdigest(), "state.json": hashlib.sha256(b"{}").hexdigest()}
    step = write_checkpoint(tmp_path, {"state.json": b"{}"}, sums)
    with pytest.raises(checkpoint.DamagedCheckpointError, match="damaged|not what was written"):
        checkpoint.load(step)


@pytest.mark.parametrize("manifest", [[], {}, None, 1, "x", {"state.json": None}, {"state.json": "0" * 64}])
def test_a_manifest_that_is_none(manifest, tmp_path):
    (step := tmp_path / "step-00000020").mkdir()
    (step / "state.json").write_text("{}")
    (step / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(step)


@pytest.mark.parametrize("state", [b"[" * 100_000, b"{", b"[]", b"1" * 5_000, b"\xff"])
def test_a_state_that_is_none(state, tmp_path):
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(write_checkpoint(tmp_path, {"state.json": state}))


def test_a_pickle_in_the_place_of_tensors(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    files = {"state.json": b"{}", "model.safetensors": pickle.dumps(Bomb()), ".metadata": pickle.dumps(Bomb())}
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(write_checkpoint(tmp_path, files))
    assert not (tmp_path / "canary").exists()


def test_a_run_writes_through_no_link(tmp_path):
    """A folder of somebody else may have a link where a run appends lines: they would go to any file of the user's."""
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to(victim)
    MetricLogger(folder / "metrics.jsonl").log(1, {"loss": 1.0})
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        FolderLock(folder).take()
    assert not victim.exists()
