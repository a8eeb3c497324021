"""Checkpoints under the faults that reliability asks for: half written, damaged, full disk, too many."""

import errno
import hashlib
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError

from selfpatch.output import checkpoint
from selfpatch.output.atomic_files import atomic_write


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((4, 4), float(step))}, "optimizer": {"0.step": torch.tensor(float(step))}}


def save(folder, step, keep=3):
    return checkpoint.save(folder, step, tensors(step), {"step": step}, keep=keep)


def test_round_trip_and_retention(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]
    newest, skipped_checkpoints = checkpoint.load_latest(tmp_path)
    assert newest.state == {"step": 40}
    assert skipped_checkpoints == []
    assert torch.equal(newest.tensors["model"]["weight"], torch.full((4, 4), 40.0))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_newest_checkpoint_is_noticed_and_passed_over(tmp_path, file, damage):
    save(tmp_path, 10)
    path = save(tmp_path, 20) / file
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[: len(content) // 2]))
    newest, skipped_checkpoints = checkpoint.load_latest(tmp_path)
    assert newest.state["step"] == 10
    assert len(skipped_checkpoints) == 1
    assert "step-00000020" in skipped_checkpoints[0]


def test_a_crash_in_mid_save_leaves_the_old_one_and_is_cleaned_up(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def crash(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(checkpoint, "fsync", crash)
        save(tmp_path, 20)
    assert checkpoint.load_latest(tmp_path)[0].state["step"] == 10
    save(tmp_path, 20)  # what the crash left is in nobody's way
    assert checkpoint.load_latest(tmp_path)[0].state["step"] == 20


def test_a_full_disk_says_how_much_is_needed_and_keeps_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    big = {"model": {"weight": torch.zeros(1_000_000)}}
    with pytest.raises(OSError, match="4 MB"):
        checkpoint.save(tmp_path, 20, big, {"step": 20}, keep=3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_a_disk_that_fails_otherwise_is_an_error_of_the_disk(tmp_path, monkeypatch):
    """As safetensors has its own class for it."""

    def over_quota(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")

    monkeypatch.setattr(checkpoint, "save_file", over_quota)
    with pytest.raises(OSError, match="quota"):
        save(tmp_path, 20)
    assert not list(tmp_path.iterdir())


def test_replacing_is_all_or_nothing(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_manifest_names_every_file(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {p.name for p in path.iterdir()} - {"manifest.json"}


def test_a_damaged_later_checkpoint_never_pushes_out_a_whole_one(tmp_path):
    save(tmp_path, 450, keep=1)
    damaged = save(tmp_path, 500, keep=2) / "state.json"
    damaged.write_text("{")
    save(tmp_path, 460, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000460"]


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", "null", "3", '"x"', '{"model.safetensors": "0"}', "{", '{"../step-00000001/state.json": "0"}'],
)
def test_a_damaged_manifest_costs_one_checkpoint(manifest, tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"model": {"w": torch.ones(2)}}, {"step": step}, keep=3)
    (tmp_path / "step-00000002" / "manifest.json").write_text(manifest)
    found, skipped = checkpoint.load_latest(tmp_path)
    assert found is not None and found.state["step"] == 1
    assert len(skipped) == 1 and "step-00000002" in skipped[0]


def test_a_manifest_cannot_point_at_another_checkpoint(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"model": {"w": torch.full((2,), float(step))}}, {"step": step}, keep=3)
    newer, older = tmp_path / "step-00000002", tmp_path / "step-00000001"
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["../step-00000001/model.safetensors"] = json.loads((older / "manifest.json").read_text())[
        "model.safetensors"
    ]
    (newer / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        checkpoint.load(newer)


def test_a_state_that_is_no_object_is_damage(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"step": 1}, keep=3)
    (path / "state.json").write_text("[1, 2]")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256(b"[1, 2]").hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        checkpoint.load(path)


def test_a_file_that_is_no_safetensors_is_damage(tmp_path):
    """Though its checksum is right."""
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    (path / "model.safetensors").write_bytes(b"x")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model.safetensors"] = hashlib.sha256(b"x").hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.load_latest(tmp_path)[0].state["step"] == 10


def test_a_file_that_the_disk_does_not_give_is_damage(tmp_path, monkeypatch):
    save(tmp_path, 10)
    bad = save(tmp_path, 20)
    sha256 = checkpoint._sha256

    def read(path):
        if path.parent == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", read)
    newest, skipped = checkpoint.load_latest(tmp_path)
    assert newest.state["step"] == 10
    assert "Input/output error" in skipped[0]
    assert checkpoint.latest_state(tmp_path) == {"step": 10}


def test_the_latest_state_is_that_of_a_whole_file(tmp_path):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    (path / "state.json").write_text('{"step": 21}')
    assert checkpoint.latest_state(tmp_path) == {"step": 10}


def test_a_copy_that_a_user_made_is_neither_read_nor_deleted(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"model": {"w": torch.ones(2)}}, {"step": step}, keep=1)
        if step == 1:
            shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009.bak")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000009.bak"]
    found, _ = checkpoint.load_latest(tmp_path)
    assert found is not None and found.state["step"] == 3
