"""A list of paths instead of a folder, patterns of names, and equal content under other names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.config import ImagesConfig
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.manifest import ImageManifest, open_images
from selfpatch.data.same_content import same_content
from selfpatch.data.source import ImageSource
from selfpatch.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for index, name in enumerate(("a/one.png", "a/two.png", "b/one.png", "b/three_mask.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / name)
    return tmp_path


def write(path: Path, names: list[str]) -> Path:
    if path.suffix == ".csv":
        path.write_text("label,path\n" + "".join(f"x,{name}\n" for name in names), encoding="utf-8-sig")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file_name": name}) + "\n" for name in names) + "\n", encoding="utf-8")
    elif path.suffix == ".txt":
        path.write_text("\n".join(names) + "\n\n", encoding="utf-8")
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"image": names, "label": [0] * len(names)}), path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt", ".parquet"])
def test_images_come_in_the_order_of_the_list(folder, ending):
    names = ["b/one.png", str(folder / "a" / "two.png"), "a/one.png"]
    images: ImageSource = open_images(write(folder / f"list{ending}", names))
    assert [images.read(index)[0, 0, 0] for index in range(len(images))] == [2, 1, 0]
    assert images.name(0) == "b/one.png"
    assert images.notes == []
    same = open_images(write(folder / f"other{ending}", names))
    other = open_images(write(folder / f"third{ending}", names[::-1]))
    assert images.fingerprint() == same.fingerprint() != other.fingerprint()


def test_patterns_choose_names(folder):
    def chosen(**patterns) -> list[str]:
        images = open_images(folder, ImagesConfig(**patterns))
        return [images.name(index) for index in range(len(images))]

    assert chosen(include=("a/*",)) == ["a/one.png", "a/two.png"]
    assert chosen(exclude=("*_mask.png",)) == ["a/one.png", "a/two.png", "b/one.png"]
    assert chosen(include=("one.png", "b/*"), exclude=("*mask*",)) == ["a/one.png", "b/one.png"]
    assert open_images(folder, ImagesConfig(include=("a/*",))).notes == ["2 images are left out by the patterns given"]
    listed = write(folder / "list.csv", ["a/one.png", "b/one.png"])
    assert len(open_images(listed, ImagesConfig(exclude=("b/*",)))) == 1
    for images in (folder, listed):
        with pytest.raises(UserError, match="is left by the patterns: include \\*.tif, exclude none"):
            open_images(images, ImagesConfig(include=("*.tif",)))


def test_folders_without_patterns_are_read_as_before(folder):
    assert ImageFolder(folder).fingerprint() == ImageFolder(folder, include=("*",)).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "path\na/one.png\na/none.png\nb/nix.png\n", r"2 of the 3 files that .* lists are not there: a/none.png, b/nix"),
        ("a.csv", "label,url\n1,a/one.png\n", "has no column of paths: it has label, url; call the column path"),
        ("a.csv", "", "has no column of paths: it has no column"),
        ("a.csv", "path\n", "lists no image"),
        ("a.csv", "path,label\n,1\n", "row 2 of the manifest .* has no path but ''"),
        ("a.csv", "path\na/one.png\na/one.png\n", "lists 1 images more than once, a/one.png for one"),
        ("a.csv", "path\na\n", "1 of the 1 files"),
        ("a.jsonl", '{"path": "a/one.png"}\n{"path": 3}\n', "row 2 of the manifest .* has no path but 3"),
        ("a.jsonl", '{"path": "a/one.png"}\n{"url": "x"}\n', "row 2 of the manifest .* has no path but None"),
        ("a.jsonl", '{"url": "a/one.png"}\n', "has no column of paths: it has url"),
        ("a.jsonl", "[1]\n", "line 1 of .* is no object"),
        ("a.jsonl", "path\n", "line 1 of .* is not JSON"),
        ("a.txt", "\n", "lists no image"),
        ("a.parquet", "nothing", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(folder, name, content, reason):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        ImageManifest(folder / name)


def test_a_list_that_is_no_text(folder):
    (folder / "a.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read: .*; it is text in UTF-8, or Parquet"):
        ImageManifest(folder / "a.csv")
    with pytest.raises(UserError, match="is a file; give the folder that holds the images"):
        open_images(folder / "a" / "one.png")


def test_content_tells_what_is_the_same(folder):
    (folder / "c").mkdir()
    (folder / "c" / "copy.png").write_bytes((folder / "a" / "two.png").read_bytes())
    changed = bytearray((folder / "a" / "one.png").read_bytes())
    changed[-20] ^= 1  # as long, and another file
    (folder / "c" / "changed.png").write_bytes(changed)
    os.symlink(folder / "nowhere.png", folder / "c" / "gone.png")
    (folder / "c" / "empty.png").touch()
    (folder / "a" / "empty.png").touch()
    images = ImageFolder(folder / "a")
    found = same_content(sorted((folder / "c").iterdir()), images)
    assert {path.name: images.name(index) for path, index in found.items()} == {"copy.png": "two.png"}
