"""Folders of images: what is found, in which order, at what cost, and what is said when nothing is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.config import RGB_8
from selfpatch.data.image_folder import ImageFolder, require_readable
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.source import ImageSource


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(images: ImageFolder) -> list[str]:
    return [str(images.path(i).relative_to(images.folders[0])) for i in range(len(images))]


def test_finds_all_endings_below_and_nothing_else(tmp_path):
    found = [
        "a.jpeg",
        "b.JPG",
        "c.Png",
        "d.webp",
        "e.tif",
        "f.TIFF",
        "g.jfif",
        "h.JPE",
        "i.bmp",
        "j.GIF",
        "deep/er/k.jpg",
    ]
    touch(tmp_path, *found, "notes.txt", "jpg", "more.txt", "x.heic", "scan.0017", "v1. all of them")
    touch(
        tmp_path, ".hidden.jpg", ".thumbs/i.jpg", "._a.jpeg", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", "deep/@eaDir/t.jpg"
    )
    images = ImageFolder(tmp_path)
    assert names(images) == found
    assert images.notes == ["6 files were left out: 3 without an ending, 2 .txt, 1 .heic"]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{i % 3}/{i}.jpg" for i in range(20)), "10.jpg", "9.jpg")
    expected = names(ImageFolder(tmp_path))
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(ImageFolder(tmp_path)) == expected
    assert expected[:3] == ["10.jpg", "9.jpg", "0/0.jpg"]


def test_several_folders_keep_their_order(tmp_path):
    touch(tmp_path, "z/1.jpg", "z/2.jpg", "a/3.jpg", "empty/notes.txt", "m/4.jpg")
    images = ImageFolder(*(tmp_path / name for name in ("z", "empty", "a", "m")))
    assert names(ImageFolder(tmp_path / "z")) == ["1.jpg", "2.jpg"]
    assert [images.path(i) for i in range(4)] == [
        tmp_path / name for name in ("z/1.jpg", "z/2.jpg", "a/3.jpg", "m/4.jpg")
    ]
    for index in (-1, 4):
        with pytest.raises(IndexError):
            images.path(index)


def test_links(tmp_path):
    touch(tmp_path, "images/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/c.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    images = ImageFolder(tmp_path / "images")
    assert names(images) == ["a.jpg", "c.jpg"]
    assert images.num_links == 2
    assert images.notes == ["2 links to folders were not followed: give the targets, or put the files there"]
    touch(tmp_path, "links/notes.txt")
    (tmp_path / "links/elsewhere").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="1 link to a folder, not followed"):
        ImageFolder(tmp_path / "links")


def test_names_without_utf8(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\xe4"
    os.mkdir(odd)
    image = Image.new("RGB", (4, 4), "red")
    image.save(os.fsdecode(odd + b"/\xfe.png"))
    for folder in (tmp_path, Path(os.fsdecode(odd))):
        images = ImageFolder(folder)
        assert os.fsencode(images.path(0)) == odd + b"/\xfe.png"
        assert images.read(0).tolist() == np.asarray(image).tolist()
        assert len(images.fingerprint()) == 64


def test_names_are_printable_and_distinct(tmp_path):
    """Every name is one cell of a table, and encodes; paths stay as they are."""
    odd = [b"a\nb.jpg", b"a\\nb.jpg", b"\x1b[31mred.jpg", b"\xff.jpg", b"\\xff.jpg", b"tab\t.jpg", "é 漢.jpg".encode()]
    for name in odd:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT))
    images: ImageSource = ImageFolder(tmp_path)
    shown = {os.fsencode(images.path(i).name): images.name(i) for i in range(len(images))}
    assert shown == dict(zip(odd, [
        r"a\nb.jpg", r"a\\nb.jpg", r"\x1b[31mred.jpg", r"\xff.jpg", r"\\xff.jpg", r"tab\t.jpg", "é 漢.jpg",
    ], strict=True))  # fmt: skip
    assert images.pixels == RGB_8


def test_names_tell_folders_apart(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/deep/1.jpg")
    images = ImageFolder(tmp_path / "a", tmp_path / "b")
    assert [images.name(i) for i in range(2)] == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/b/deep/1.jpg"]
    assert ImageFolder(tmp_path / "b").name(0) == "deep/1.jpg"


def test_fingerprint(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    before = ImageFolder(tmp_path).fingerprint()
    assert ImageFolder(tmp_path).fingerprint() == before
    shutil.move(tmp_path / "a", tmp_path / "c")
    assert ImageFolder(tmp_path).fingerprint() != before
    shutil.move(tmp_path / "c", tmp_path / "a")
    assert ImageFolder(tmp_path).fingerprint() == before
    two = ImageFolder(tmp_path / "a", tmp_path / "b").fingerprint()
    assert two != ImageFolder(tmp_path / "b", tmp_path / "a").fingerprint()
    touch(tmp_path, "b/4.jpg")
    assert ImageFolder(tmp_path).fingerprint() != before
    # The same names, told apart by the folder they are in.
    touch(tmp_path, "x/1.jpg", "x/2.jpg", "y/3.jpg", "v/1.jpg", "w/2.jpg", "w/3.jpg")
    x_y, v_w = (ImageFolder(*(tmp_path / name for name in pair)) for pair in ("xy", "vw"))
    assert x_y.fingerprint() != v_w.fingerprint()


def test_errors_say_what_to_do(tmp_path):
    touch(tmp_path, "file.jpg", "other/notes.txt", "other/more.TXT", "other/README", "other/deep/x.heic")
    (tmp_path / "nothing/below").mkdir(parents=True)
    for folder, message in {
        "missing/deep/down": rf"does not exist \(but {tmp_path} does\)",
        "file.jpg": "is a file; give the folder",
        "other": r"looked for \.jpg .*4 files, none with such an ending \(2 \.txt, 1 .*",
        "nothing": "found no file at all",
    }.items():
        with pytest.raises(ValueError, match=message):
            ImageFolder(tmp_path / folder)


def test_require_readable(tmp_path):
    touch(tmp_path, *(f"{i:03}.jpg" for i in range(100)))
    with pytest.raises(ValueError, match=r"none of 32 images, spread over the 100 found.*000.jpg: empty file"):
        require_readable(ImageFolder(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "099.jpg")
    require_readable(ImageFolder(tmp_path))
    with pytest.raises(UnreadableImage):
        ImageFolder(tmp_path).read(0)


# Names of 30 letters in folders of 15: what would be 130 bytes of a Path's string is 46 here.
MEASURE = """
import sys, time, tracemalloc
from pathlib import Path
from selfpatch.data.image_folder import ImageFolder
started = time.perf_counter()
ImageFolder(Path(sys.argv[1]))
seconds = time.perf_counter() - started
tracemalloc.start()
images = ImageFolder(Path(sys.argv[1]))
held, peak = tracemalloc.get_traced_memory()
print(len(images), held / len(images), peak / len(images), seconds)
"""


@pytest.mark.slow
def test_bytes_and_seconds_for_many_images(tmp_path):
    """The budget of a million images, 150 MB at the peak and 5 seconds, at 1/50; time with room for a busy machine."""
    for folder in range(5):
        (tmp_path / f"folder_{folder:08}").mkdir()
        for i in range(4_000):
            os.close(os.open(tmp_path / f"folder_{folder:08}" / f"a_photograph_number_{i:08}.jpg", os.O_CREAT))
    out = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True).stdout
    count, held, peak, seconds = map(float, out.split())
    assert count == 20_000
    assert held < 60
    assert peak < 150
    assert seconds < 2
