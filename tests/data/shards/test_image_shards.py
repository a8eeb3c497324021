"""Shards are read as the folder that they come from; other people's tar files as they are."""

import io
import os
import pickle
import shutil
import signal
import tarfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from selfpatch.commands.shard import shard
from selfpatch.config import ImagesConfig
from selfpatch.data import local_ranges
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.shards import byte_range
from selfpatch.data.shards import open_shards as opening
from selfpatch.data.shards import write_shards as writing
from selfpatch.data.shards.image_shards import ImageShards
from selfpatch.data.shards.shard_index import MEMBER
from selfpatch.errors import UserError
from tests.refusals import Refused, contents


def same_images(found, folder: Path) -> None:
    images = ImageFolder(folder)
    assert [found.name(i) for i in range(len(found))] == [images.name(i) for i in range(len(images))]
    for i in range(len(images)):
        assert found.location(i).read_bytes() == images.path(i).read_bytes()
        assert np.array_equal(found.read(i), images.read(i))
    assert found.fingerprint() == images.fingerprint()
    assert found.content_fingerprint() == images.content_fingerprint()


def test_shards_are_the_folder(folder, tmp_path):
    out = tmp_path / "shards"
    (folder / "notes.txt").touch()
    assert shard(folder, out, max_size=1) == 6
    found = open_images(out)
    assert isinstance(found, ImageShards)
    same_images(found, folder)
    # The tar files are whole by themselves, for WebDataset's own readers and for tar.
    with tarfile.open(out / "shard-000000.tar") as archive:
        names = [member.name for member in archive]
        assert names == [str(ImageFolder(folder).path(i).relative_to(folder)) for i in range(6)]
        assert archive.extractfile("b/two.v2.png").read() == (folder / "b/two.v2.png").read_bytes()
    # Without the index they are read by their headers, once.
    shutil.rmtree(out / "index")
    (out / "index.json").unlink()
    same_images(open_images(out), folder)
    same_images(open_images(out / "shard-000000.tar"), folder)


def test_names_that_would_leave_a_folder_stay_in_the_index_alone(folder, tmp_path):
    (folder / "list.txt").write_text(f"../images/a.png\n{folder / 'z.jpg'}\n")
    shard(folder / "list.txt", tmp_path / "shards")
    found = open_images(tmp_path / "shards")
    assert [found.name(i) for i in range(2)] == ["../images/a.png", str(folder / "z.jpg")]
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as archive:
        assert archive.getnames() == ["__/images/a.png", str(folder / "z.jpg").lstrip("/")]


def test_patterns_choose_images_of_shards(folder, tmp_path):
    shard(folder, tmp_path / "shards")
    found = open_images(tmp_path / "shards", ImagesConfig(include=("b/*",), exclude=("*three*",)))
    assert [found.name(i) for i in range(len(found))] == ["b/one.png", "b/two.v2.png"]
    assert found.location(1).read_bytes() == (folder / "b/two.v2.png").read_bytes()
    assert found.notes == ["4 images are left out by the patterns given"]
    with pytest.raises(UserError, match="none of the 6 images"):
        open_images(tmp_path / "shards", ImagesConfig(include=("x",)))


def small_shards(monkeypatch, max_bytes: int = 6000) -> None:
    """Options count in megabytes, and images of tests do not have that."""
    write = writing.write_shards
    monkeypatch.setattr(
        "selfpatch.commands.shard.write_shards", lambda images, out, **_: write(images, out, max_bytes=max_bytes)
    )


def test_a_shard_ends_before_its_largest_size(folder, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    shard(folder, tmp_path / "shards")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "shards").glob("*.tar"))]
    assert len(sizes) > 2 and max(sizes) <= 6000
    found = open_images(tmp_path / "shards")
    same_images(found, folder)
    assert {found.location(i).file for i in range(6)} == set(found.files)


def _shard_and_die(folder: Path, out: Path, num_shards: int) -> None:
    """Killed while it writes a shard."""
    finish, done = writing._write_shard, []

    def write(images, start, tar, max_bytes):
        if len(done) == num_shards:
            tar.with_name(f".{tar.name}.123").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(tar)
        return finish(images, start, tar, max_bytes)

    writing._write_shard = write
    list(writing.write_shards(ImageFolder(folder), out, max_bytes=6000))


def test_a_killed_command_goes_on_and_ends_as_unbroken(folder, tmp_path, monkeypatch):
    (folder / "b" / "gone.png").symlink_to("nowhere")
    small_shards(monkeypatch)
    shard(folder, tmp_path / "unbroken")
    for num_shards in (0, 2, 1):  # the second and third call go on
        process = get_context("fork").Process(target=_shard_and_die, args=(folder, tmp_path / "out", num_shards))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        with pytest.raises(UserError, match="not finished"):
            open_images(tmp_path / "out")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(finished) >= 3
    assert shard(folder, tmp_path / "out") == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert shard(folder, tmp_path / "out") == 6  # there is nothing left to do


def test_mistakes_of_shard(folder, tmp_path, capsys, monkeypatch):
    refused, out = Refused(capsys), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    refused(["shard", folder, out], "holds something else already", out=out)
    (out / "mine.txt").unlink()
    refused(["shard", folder, out, "--max-size", "0"], "max-size", out=out)
    small_shards(monkeypatch)
    process = get_context("fork").Process(target=_shard_and_die, args=(folder, out, 1))
    process.start()
    process.join(60)
    (folder / "a.png").rename(folder / "aa.png")
    refused(["shard", folder, out], "beginning of shards of other images", out=out)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "gone.png").symlink_to("nowhere")
    refused(["shard", tmp_path / "none", tmp_path / "nothing"], "nothing to write", out=tmp_path / "none")
    assert not list((tmp_path / "nothing").iterdir())


@pytest.fixture
def shards(folder, tmp_path) -> Path:
    shard(folder, tmp_path / "shards")
    return tmp_path / "shards"


def test_an_index_of_other_shards_is_refused(shards, folder, capsys, monkeypatch):
    def refuses(*patterns: str) -> None:
        Refused(capsys)(["check", shards], *patterns, out=shards)

    tar = shards / "shard-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole + bytes(512))
    refuses("is of other shards", "instead of")
    tar.unlink()
    refuses("1 of the 1 shards", "are not there")
    tar.write_bytes(whole)
    ends = shards / "index" / "ends.npy"
    kept = ends.read_bytes()
    ends.write_bytes(kept[:-8])
    refuses("ends.npy cannot be read")
    ends.unlink()
    refuses("ends.npy cannot be read")
    ends.write_bytes(kept)
    # As long, and other bytes: noticed when they are read.
    tar.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    images = open_images(shards)
    with pytest.raises(UnreadableImage, match="checksum"):
        images.read(0)
    assert images.read(1).shape == (24, 32, 3)
    # The first few of each shard, as that takes longer than reading; all of them where it is asked for.
    monkeypatch.setitem(byte_range._NUM_CHECKED, images.files[0], byte_range.CHECKED_PER_SHARD)
    assert images.location(0).read_bytes() != (folder / "a.png").read_bytes()
    with pytest.raises(UnreadableImage, match="checksum"):
        images.location(0).read_bytes(checked=True)


def test_shards_beside_images_and_without_any_are_refused(shards, tmp_path, capsys):
    refused = Refused(capsys)
    (shards / "index.json").unlink()
    (shards / "x.png").touch()
    refused(["check", shards], "1 tar file and 1 image", "which are meant", out=shards)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "0.tar").touch()
    refused(["check", tmp_path / "empty"], "no image in", "0.tar: empty file", out=tmp_path / "empty")
    with tarfile.open(tmp_path / "empty" / "0.tar", "w") as archive:
        archive.add(__file__, "text.py")
    refused(["check", tmp_path / "empty"], "no image in", r"1 file was left out: 1 \.py", out=tmp_path / "empty")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_tars_of_others(folder, tmp_path, cache, monkeypatch):
    """WebDataset's usual: labels beside images, names that begin anew in every file, long names."""
    png, long = (folder / "a.png").read_bytes(), "n" * 180
    other = tmp_path / "other"
    other.mkdir()
    write_tar(other / "1.tar", {"0.png": png, "0.cls": b"1", f"{long}.png": png})
    write_tar(other / "0.tar", {"0.jpg": png, "0.json": b"{}", "0.png": png[:-1]})
    images = open_images(other)
    names = ["0.tar/0.jpg", "0.tar/0.png", "1.tar/0.png", f"1.tar/{long}.png"]
    assert [images.name(i) for i in range(len(images))] == names
    assert images.location(3).read_bytes() == png and images.location(1).read_bytes() == png[:-1]
    assert images.notes == ["2 files were left out: 1 .cls, 1 .json"]

    def never(*_):
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "scan_tar", never)
        assert open_images(other).fingerprint() == images.fingerprint()
        os.utime(other / "0.tar")
        with pytest.raises(AssertionError, match="scanned again"):
            open_images(other)
    monkeypatch.setenv("SELFPATCH_CACHE", "/dev/null/none")  # nothing can be kept
    assert len(open_images(other)) == 4


def test_few_files_are_open_however_many_shards(tmp_path):
    for i in range(60):
        write_tar(tmp_path / f"{i:03d}.tar", {f"{i}.png": bytes([i]) * 100})
    files = local_ranges.OpenFiles(limit=8)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for i in range(60):
            assert files.read(str(tmp_path / f"{i:03d}.tar"), 512, 100) == bytes([i]) * 100
    assert len(files) == 8
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    assert local_ranges.MAX_OPEN <= 64


def test_an_index_takes_24_bytes_and_a_name_per_image(shards):
    """docs/data.md and docs/clusters.md count with it."""
    images = open_images(shards)
    per_image = MEMBER.itemsize + images._ends.itemsize
    assert per_image == 24
    names = sum(len(images.name_bytes(i)) + 1 for i in range(len(images)))
    held = images._members.nbytes + images._ends.nbytes + len(images._names)
    assert held == 24 * len(images) + 8 + names
    assert isinstance(images._members.base, np.memmap) or isinstance(images._members, np.memmap)


def test_locations_are_small_and_go_to_other_processes(shards):
    location = open_images(shards).location(2)
    sent = pickle.dumps(location)
    assert len(sent) < 400
    assert pickle.loads(sent).read_bytes() == location.read_bytes()
