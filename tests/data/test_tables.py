"""Images in Arrow and Parquet, as Hugging Face stores them, are those of the folder they come from."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from selfpatch.config import ImagesConfig
from selfpatch.data import tables
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.errors import UserError
from tests.refusals import Refused

NUM_IMAGES = 7
RECORD = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for seed in range(NUM_IMAGES):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{seed}.png")
    return tmp_path / "images"


def table_of(folder: Path, kind: pa.DataType = RECORD) -> pa.Table:
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    images = contents if kind != RECORD else [{"bytes": content, "path": "x.png"} for content in contents]
    return pa.table({"label": list(range(len(contents))), "image": pa.array(images, kind)})


def save_to_disk(table: pa.Table, out: Path, *, rows_per_batch: int = 2) -> Path:
    """The layout of Dataset.save_to_disk: streams of Arrow, their names in state.json."""
    out.mkdir()
    names = []
    for number, part in enumerate((table.slice(0, 4), table.slice(4))):
        names.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pa.OSFile(str(out / names[-1]["filename"]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part, max_chunksize=rows_per_batch)
    (out / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x", "_split": None}))
    (out / "dataset_info.json").write_text("{}")
    return out


def write_parquet(table: pa.Table, out: Path) -> Path:
    out.mkdir()
    parquet.write_table(table.slice(0, 4), out / "train-00000-of-00002.parquet", row_group_size=3)
    parquet.write_table(table.slice(4), out / "train-00001-of-00002.parquet", row_group_size=3, compression="zstd")
    return out


@pytest.mark.parametrize("write", [save_to_disk, write_parquet])
@pytest.mark.parametrize("kind", [RECORD, pa.binary(), pa.large_binary()], ids=str)
def test_rows_are_the_images(folder, tmp_path, write, kind):
    found, images = open_images(write(table_of(folder, kind), tmp_path / "out")), ImageFolder(folder)
    assert len(found) == NUM_IMAGES
    for index in (6, 0, 3, 4, 2, 5, 1):  # in any order
        assert found.location(index).read_bytes() == images.path(index).read_bytes()
        assert found.location(index).read_bytes(limit=9) == images.path(index).read_bytes()[:9]
        assert found.location(index).num_bytes() == images.path(index).stat().st_size
        assert np.array_equal(found.read(index), images.read(index))
    assert len({found.name(i) for i in range(NUM_IMAGES)}) == NUM_IMAGES
    assert found.content_fingerprint() == images.content_fingerprint()
    with pytest.raises(IndexError):
        found.read(NUM_IMAGES)


def test_one_file_and_patterns(folder, tmp_path):
    out = write_parquet(table_of(folder), tmp_path / "out")
    assert len(open_images(out / "train-00001-of-00002.parquet")) == 3
    with pytest.raises(UserError, match="include"):
        open_images(out, ImagesConfig(include=("a*",)))
    before = open_images(out).fingerprint()
    (out / "train-00001-of-00002.parquet").unlink()
    assert open_images(out).fingerprint() != before


def test_a_cell_without_bytes_is_no_image_and_its_path_is_not_followed(folder, tmp_path):
    secret = tmp_path / "images" / "0.png"
    rows = [{"bytes": None, "path": str(secret)}, None, {"bytes": secret.read_bytes(), "path": None}]
    out = tmp_path / "out"
    out.mkdir()
    parquet.write_table(pa.table({"image": pa.array(rows, RECORD)}), out / "a.parquet")
    images = open_images(out)
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match="no bytes"):
            images.read(index)
    assert images.read(2).shape == (24, 32, 3)


def test_few_rows_are_in_memory(folder, tmp_path):
    images = open_images(write_parquet(table_of(folder), tmp_path / "out"))
    for index in range(NUM_IMAGES):
        images.read(index)
    assert len(tables._GROUPS._groups) == tables._MAX_GROUPS


def test_tables_that_are_none(folder, tmp_path, capsys, monkeypatch):
    refused, out = Refused(capsys), tmp_path / "out"

    def refuses(*patterns: str, path: Path = out) -> None:
        refused(["check", path], *patterns, out=out)

    table = table_of(folder)
    save_to_disk(table, out)
    (out / "data-00001-of-00002.arrow").rename(out / "away")
    refuses("1 of the 2 tables", "are not there")
    (out / "data-00001-of-00002.arrow").write_bytes((out / "away").read_bytes()[:500])
    refuses("cannot be read as a table")
    for text in ("[]", "null", '{"_data_files": [{"filename": "../x.arrow"}]}', "[" * 100_000):
        (out / "state.json").write_text(text)
        refuses("state.json is not as save_to_disk writes it")
    (out / "dataset_dict.json").write_text("{}")
    refuses("several data sets")
    for path in out.iterdir():
        path.unlink()
    parquet.write_table(table.drop_columns(["image"]), out / "a.parquet")
    refuses("no column of .* holds images")
    parquet.write_table(pa.table({"a": table["image"], "b": table["image"]}), out / "a.parquet")
    refuses("several columns", "a, b")
    parquet.write_table(table.slice(0, 0), out / "a.parquet")
    refuses("no rows")
    parquet.write_table(table, out / "a.parquet")
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 1000)
    refuses("row group", "row_group_size")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refuses(r"pip install 'selfpatch\[parquet\]'")
