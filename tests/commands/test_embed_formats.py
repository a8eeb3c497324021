"""The same tokens in every format, found by the index; a cut at any place costs what was not written yet."""

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image
from safetensors.numpy import load_file

from selfpatch.cli import main
from selfpatch.commands import embed as embed_module
from selfpatch.commands.embed import embed
from selfpatch.errors import RunFailedError, UserError
from selfpatch.export import export_timm
from selfpatch.output import token_files
from selfpatch.output.token_files import read_index
from tests.small_models import tiny_config, tiny_student_teacher

SIZES = {"a.png": (40, 40), "b.png": (32, 70), "c'é \"<b>.png": (40, 33), "deep/d.png": (64, 33), "e.png": (40, 40)}
FORMATS = ["npy", "zarr", "parquet", "safetensors"]
SETTINGS = {"level": "patch", "image_size": 16, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """images/ and model.safetensors."""
    folder, rng = tmp_path_factory.mktemp("embed"), np.random.default_rng(0)
    (folder / "images/deep").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / name)
    (folder / "images/broken.png").write_text("no picture")
    export_timm(tiny_student_teacher(tiny_config()).teacher.export_backbone(), folder / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "BATCH_SIZE", 1)
        embed(folder / "model.safetensors", folder / "images", folder / "plain", **SETTINGS)
    return folder


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Several parts, and images that begin within a chunk."""
    monkeypatch.setattr(embed_module, "BATCH_SIZE", 1)
    monkeypatch.setattr(token_files, "PART_BYTES", 1000)
    monkeypatch.setattr(token_files, "CHUNK_ROWS", 7)


def plain(folder: Path) -> dict[str, np.ndarray]:
    names = (folder / "plain/files.txt").read_text().splitlines()
    return {name: np.load(folder / "plain/patches" / f"{name}.npy") for name in names}


def by_index(out: Path) -> dict[str, np.ndarray]:
    """What the index says, read by the readers of others."""
    tokens = {}
    for entry in read_index(out / "index.jsonl")[0]:
        rows = slice(entry.start, entry.start + entry.rows * entry.columns)
        shape = (entry.rows, entry.columns, -1)
        match entry.file.rpartition(".")[2]:
            case "npy":
                tokens[entry.name] = np.load(out / entry.file)
            case "zarr":
                tokens[entry.name] = np.asarray(zarr.open_array(out / entry.file, mode="r")[rows]).reshape(shape)
            case "safetensors":
                tokens[entry.name] = load_file(out / entry.file)[entry.name]
            case "parquet":
                table = pq.read_table(out / entry.file).slice(rows.start, rows.stop - rows.start)
                assert set(table["name"].to_pylist()) == {entry.name}
                places = [*zip(table["row"].to_pylist(), table["column"].to_pylist(), strict=True)]
                assert places == list(np.ndindex(entry.rows, entry.columns))
                tokens[entry.name] = np.stack(table["token"].to_numpy()).reshape(shape)
    return tokens


def require_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, tokens in wanted.items():
        np.testing.assert_array_equal(found[name], tokens)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_index_finds_the_tokens_of_each_image(format, dtype, folder, tmp_path):
    arguments = [str(folder / "model.safetensors"), str(folder / "images"), str(tmp_path / "out")]
    flags = ["--level", "patch", "--format", format, "--dtype", dtype, "--image-size", "16", "--device", "cpu"]
    assert main(["embed", *arguments, *flags]) == 0
    require_equal(by_index(tmp_path / "out"), {name: tokens.astype(dtype) for name, tokens in plain(folder).items()})
    files = {entry.file for entry in read_index(tmp_path / "out/index.jsonl")[0]}
    assert len(files) == {"npy": 5, "zarr": 1}.get(format, 3 if dtype == "float32" else 2)
    described = json.loads((tmp_path / "out/embeddings.json").read_text())
    assert (described["state"], described["format"], described["num_images"]) == ("done", format, 5)
    assert "broken.png" in (tmp_path / "out/unreadable.txt").read_text()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("whole_writes", [0, 1, 2])
def test_a_cut_at_any_write_goes_on(format, whole_writes, folder, tmp_path, monkeypatch, capsys):
    """After tokens are written and before the index is: what is in no index is written again."""
    kind, out, calls = token_files.FORMATS[format], tmp_path / "out", []
    write = kind._write

    def cut(self, images):
        entries = write(self, images)
        calls.append(images)
        if len(calls) > whole_writes:
            raise OSError(28, "No space left on device", str(out))
        return entries

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_write", cut)
        with pytest.raises(RunFailedError, match="No space left"):
            embed(folder / "model.safetensors", folder / "images", out, format=format, **SETTINGS)
    num_done = len(by_index(out))
    assert json.loads((out / "embeddings.json").read_text())["state"] == "running"
    if num_done:
        with (out / "index.jsonl").open("a") as index:
            index.write('{"name": "a.p')  # a line that was cut
    assert embed(folder / "model.safetensors", folder / "images", out, format=format, **SETTINGS) == 5
    require_equal(by_index(out), plain(folder))
    assert (f"{num_done} of 6 images are there already" in capsys.readouterr().out) == (num_done > 0)


def test_nothing_is_computed_twice(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "plain", tmp_path / "out")
    monkeypatch.setattr(embed_module, "resize_image", lambda *_: pytest.fail("read again"))
    assert embed(folder / "model.safetensors", folder / "images", tmp_path / "out", **SETTINGS) == 5
    assert json.loads((tmp_path / "out/embeddings.json").read_text())["state"] == "done"


@pytest.mark.parametrize("format", FORMATS[1:])
def test_one_vector_per_image(format, folder, tmp_path):
    settings = SETTINGS | {"level": "image"}
    embed(folder / "model.safetensors", folder / "images", tmp_path / "npy", **settings)
    embed(folder / "model.safetensors", folder / "images", tmp_path / "out", format=format, **settings)
    vectors = np.stack([tokens[0, 0] for tokens in by_index(tmp_path / "out").values()])
    np.testing.assert_array_equal(vectors, np.load(tmp_path / "npy/embeddings.npy"))


def test_no_room(folder, tmp_path, monkeypatch, capsys):
    """One paragraph before anything is written, with what is needed: 16 x 16 px at patches of 8, 32 wide."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 300))
    arguments = [str(folder / "model.safetensors"), str(folder / "images"), str(tmp_path / "out"), "--image-size", "16"]
    code = main(["embed", *arguments, "--level", "patch", "--format", "zarr", "--device", "cpu"])
    assert code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "needs about 0.0 GB for 6 images of 5 tokens, 32 wide, and the disk has 0.0 GB" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"format": "zarr"}, "format was npy, now zarr"), ({"dtype": "float16"}, "dtype was float32, now float16"),
     ({"image_size": 24}, "image_size was 16, now 24"), ({"level": "image"}, "level was patch, now image")],
)  # fmt: skip
def test_other_embeddings_in_the_folder(changed, words, folder):
    before = sorted(folder.glob("plain/**/*"))
    with pytest.raises(UserError, match=words):
        embed(folder / "model.safetensors", folder / "images", folder / "plain", **SETTINGS | changed)
    assert sorted(folder.glob("plain/**/*")) == before


def test_other_weights_or_images(folder, tmp_path):
    other = tiny_student_teacher(tiny_config(), seed=1).teacher.export_backbone()
    export_timm(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="fingerprint was"):
        embed(tmp_path / "other.safetensors", folder / "images", folder / "plain", **SETTINGS)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "images/z.png")
    with pytest.raises(UserError, match="images_fingerprint was"):
        embed(folder / "model.safetensors", tmp_path / "images", folder / "plain", **SETTINGS)


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"name": "a"}', '{"name":"a","rows":-1,"columns":1,"file":"f","start":0}']
)
def test_an_index_that_is_none(line, folder, tmp_path):
    shutil.copytree(folder / "plain", tmp_path / "out")
    (tmp_path / "out/index.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match="no index of tokens"):
        embed(folder / "model.safetensors", folder / "images", tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize(("format", "package"), [("zarr", "zarr"), ("parquet", "pyarrow")])
def test_a_package_that_is_not_installed(format, package, folder, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'selfpatch\[{format}\]'"):
        embed(folder / "model.safetensors", folder / "images", tmp_path / "out", format=format, **SETTINGS)
    assert not (tmp_path / "out").exists()
