"""Files of weights by somebody who means harm: no code runs, no memory is taken on their word, all in one paragraph."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.errors import UserError
from tests.security import seeds
from tests.security.reading import read_all


class Bomb:
    """Unpickled by anything that executes, it makes a folder."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def replace_pickle(content: bytes, value: Any, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive with another pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w", compression) as new:
        for member in archive.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            new.writestr(member.filename, pickle.dumps(value, 2) if is_pickle else archive.read(member))
    return made.getvalue()


@pytest.mark.parametrize(
    "name", ["bomb.pt", "bomb.pth", "bomb.zip", "legacy.pth", "bare.pkl", "pytorch_model.bin", ".metadata"]
)
def test_pickle_bomb(name, tmp_path):
    import torch

    canary = tmp_path / "canary"
    content = {
        "legacy.pth": lambda: seeds.pickled({"a": Bomb(canary)}, legacy=True),
        "bare.pkl": lambda: pickle.dumps(Bomb(canary)),
        # A distributed checkpoint's: raw pickle, which torch's own reader executes.
        ".metadata": lambda: pickle.dumps({"state_dict_metadata": Bomb(canary)}),
    }.get(name, lambda: replace_pickle(seeds.pickled({"a": torch.zeros(2)}), {"state_dict": Bomb(canary)}))()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="read safely") as refused:
        load_backbone(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert not canary.exists()
    if name == "bare.pkl":  # the canary sings where code is executed
        pickle.loads(content)
        assert canary.exists()


def test_a_distributed_checkpoint_is_not_read(tmp_path):
    """Its folder holds a raw pickle: it is no model, whatever its name."""
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    (folder / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(UserError, match="is no run"):
        load_backbone(folder)
    assert not (tmp_path / "canary").exists()


def test_allocations_that_a_pickle_may_ask_for(tmp_path):
    """torch permits bytearray(n), and members that are compressed: a kilobyte could take all memory."""
    import torch

    class Large:
        def __reduce__(self) -> Any:
            return bytearray, (3 * 2**30,)

    files = tmp_path / "files"
    files.mkdir()
    small = seeds.pickled({"a": torch.zeros(2)})
    (files / "bytearray.pth").write_bytes(replace_pickle(small, {"a": Large()}))
    zeros = seeds.pickled({"a": torch.zeros(2**24)})
    with (
        zipfile.ZipFile(io.BytesIO(zeros)) as archive,
        zipfile.ZipFile(files / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in archive.infolist():
            new.writestr(member.filename, archive.read(member))
    assert (files / "deflated.pth").stat().st_size < 200_000
    torch.save({"blocks.0.norm.weight": torch.zeros(1).expand(10**12)}, files / "expanded.pth")
    outcomes = read_all("weights", files)
    assert [outcome.kind for outcome in outcomes] == ["refused"] * 3, outcomes
    assert "compressed" in outcomes[1].text and "bytearray" in outcomes[0].text


DEEP = "[" * 100_000
CLAIMS = {
    "a million blocks": {"arguments": {"depth": 1_000_000}},
    "a thousand blocks": {"arguments": {"depth": 1024}},
    "stages of a Swin": {"architecture": "swin_tiny_patch4_window7_224", "arguments": {"depths": [1024] * 8}},
    "no heads": {"arguments": {"num_heads": 0}},
    "heads that do not divide": {"arguments": {"num_heads": 7}},
    "no patch": {"arguments": {"patch_size": 0}},
    "patches of another size": {"arguments": {"patch_size": 1, "img_size": 8192}},
    "a wide network": {"arguments": {"embed_dim": 65536, "num_heads": 1}},
    "depth true": {"arguments": {"depth": True}},
    "depth of a fraction": {"arguments": {"depth": 1.5}},
    "a file to fetch": {"arguments": {"checkpoint_path": "/etc/passwd"}},
    "weights to download": {"arguments": {"pretrained": True}},
    "std of zero": {"std": [0, 0, 0]},
    "std not a number": {"std": "[NaN, NaN, NaN]"},
    "a huge mean": {"mean": [1e308] * 3},
    "a mean of one": {"mean": [0.5]},
    "deep arguments": {"arguments": DEEP},
    "deep mean": {"mean": DEEP},
    "deep pixels": {"pixels": DEEP},
    "a number of 5,000 digits": {"norm_eps": "1" * 5000},
    "no JSON": {"arguments": "{"},
    "another family": {"architecture": "resnet18"},
    "a name of the network": {"architecture": "hf-hub:owner/name"},
    "a folder": {"architecture": "local-dir:/etc"},
    "an unknown tag": {"architecture": "vit_tiny_patch16_224.\x1b[31m"},
    "another format": {"selfpatch_format": "2"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> bytes:
    return seeds.exported_backbone(tmp_path_factory.mktemp("seed"))


def test_every_claim_of_metadata(exported, tmp_path):
    """Each crafted file is refused in words, before a network of that size is built."""
    header, data = seeds.split_safetensors(exported)
    names = {f"{i:02d}.safetensors": claim for i, claim in enumerate(CLAIMS)}
    for name, claim in names.items():
        metadata = dict(header["__metadata__"])
        for key, value in CLAIMS[claim].items():
            metadata[key] = metadata[key] | value if isinstance(value, dict) else value
        (tmp_path / name).write_bytes(seeds.join_safetensors(header | {"__metadata__": metadata}, data))
    outcomes = read_all("weights", tmp_path)
    assert {names[o.name]: o for o in outcomes if o.kind != "refused"} == {}
    assert not [outcome.text for outcome in outcomes if "Error(" in outcome.text and "NaN" in outcome.text]


HEADERS = {
    "length beyond the file": lambda header, data: (2**40).to_bytes(8, "little") + b"{}",
    "length of all bits": lambda header, data: b"\xff" * 8 + b"{}",
    "no header": lambda header, data: b"\0" * 8,
    "deep header": lambda header, data: (100_000).to_bytes(8, "little") + DEEP.encode(),
    "overlapping tensors": lambda header, data: seeds.join_safetensors(
        {name: entry | {"data_offsets": [0, 4]} if name != "__metadata__" else entry for name, entry in header.items()}, data
    ),
    "shape that overflows": lambda header, data: seeds.join_safetensors(
        {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "empty": lambda header, data: b"",
}  # fmt: skip


def test_every_crafted_header(exported, tmp_path):
    header, data = seeds.split_safetensors(exported)
    for name, make in HEADERS.items():
        (tmp_path / f"{name}.safetensors").write_bytes(make(header, data))
    outcomes = read_all("weights", tmp_path)
    assert [outcome for outcome in outcomes if outcome.kind != "refused"] == []


def test_an_index_stays_in_its_folder(tmp_path):
    save_file({"a": __import__("torch").zeros(2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    for names in (["../outside.safetensors"], [str(tmp_path / "outside.safetensors")], [".."], [1], [DEEP[:5000]]):
        index = {"weight_map": {f"a{i}": name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="index"):
            load_backbone(folder)


def test_weights_that_are_no_numbers(exported, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(exported)
    tensors = load_file(tmp_path / "a.safetensors")
    header, _ = seeds.split_safetensors(exported)
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header["__metadata__"].items()}
    tensors["patch_embed.proj.weight"][0, 0, 0, 0] = float(np.nan)
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="not finite"):
        load_backbone(tmp_path / "a.safetensors")
