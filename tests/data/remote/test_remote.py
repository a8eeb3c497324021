"""Images behind URLs, by fsspec's memory: read whole, kept within a bound, asked for again, and no secret told."""

import os
import threading
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from selfpatch.commands.shard import shard
from selfpatch.config import cache_folder
from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.data.remote import remote_file as module
from selfpatch.data.remote.piece_cache import PieceCache
from selfpatch.data.remote.remote_file import RemoteFile
from selfpatch.data.remote.urls import redacted, require_allowed
from selfpatch.errors import UserError
from tests.refusals import Refused

NAMES = ("a.png", "b/c.png", "z.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Puts a folder behind memory://; pauses are short, and the cache is of this test alone."""
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PAUSES_S", (0.001, 0.001))
    files = fsspec.filesystem("memory")
    files.store.clear()

    def put(source: Path, name: str) -> str:
        for path in source.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/{name}/{path.relative_to(source)}", path.read_bytes())
        return f"memory://{name}"

    yield put
    files.store.clear()


@pytest.fixture
def answers(monkeypatch):
    """Every request, and what becomes of it: a function of its number and the right answer."""
    asked: list[tuple] = []
    kind = type(fsspec.filesystem("memory"))
    cat_file = kind.cat_file

    def install(change):
        def changed(self, path, start=None, end=None, **kwargs):
            asked.append((path, start, end))
            return change(len(asked), cat_file(self, path, start=start, end=end, **kwargs))

        monkeypatch.setattr(kind, "cat_file", changed)
        return asked

    return install


def same_images(found, folder: Path) -> None:
    images = ImageFolder(folder)
    assert [found.name(i) for i in range(len(found))] == [images.name(i) for i in range(len(images))]
    assert all(np.array_equal(found.read(i), images.read(i)) for i in range(len(images)))
    assert found.content_fingerprint() == images.content_fingerprint()


def test_folder_shards_tar_and_manifest_behind_a_url(folder, tmp_path, bucket):
    (folder / "notes.txt").touch()
    same_images(open_images(bucket(folder, "folder")), folder)
    shard(folder, tmp_path / "shards")
    url = bucket(tmp_path / "shards", "shards")
    found = open_images(url)
    same_images(found, folder)
    assert found.fingerprint() == ImageFolder(folder).fingerprint()
    same_images(open_images(f"{url}/shard-000000.tar"), folder)
    fsspec.filesystem("memory").rm("/shards/index.json")
    same_images(open_images(url), folder)
    (folder / "list.csv").write_text("path\nb/c.png\nmemory://folder/z.png\n")
    bucket(folder, "folder")
    for listed in (folder / "list.csv", "memory://folder/list.csv"):
        images = open_images(listed)
        assert not images.are_files
        assert [images.location(i).read_bytes() for i in (0, 1)] == [(folder / n).read_bytes() for n in NAMES[1:]]


def test_what_was_read_is_asked_for_once(folder, tmp_path, bucket, answers):
    shard(folder, tmp_path / "shards")
    url = bucket(tmp_path / "shards", "shards")
    asked = answers(lambda _, data: data)
    images = open_images(url)
    for _ in range(3):
        for index in range(3):
            images.read(index)
    assert sum(path.endswith(".tar") for path, *_ in asked) == 1  # less than a piece
    assert len(asked) == 5  # index.json, its three files, the shard
    open_images(url).read(0)
    assert len(asked) == 6  # index.json


def test_without_a_cache_only_the_image_is_asked_for(folder, tmp_path, bucket, answers, monkeypatch):
    shard(folder, tmp_path / "shards")
    images = open_images(bucket(tmp_path / "shards", "shards"))
    monkeypatch.setenv("SELFPATCH_CACHE_GB", "0")
    asked = answers(lambda _, data: data)
    for _ in range(2):
        assert images.read(1).shape == (24, 32, 3)
    assert [stop - start for _, start, stop in asked] == [images.location(1).num_bytes()] * 2
    assert not (tmp_path / "cache" / "remote").exists()


def test_short_answers_and_errors_are_asked_again(folder, tmp_path, bucket, answers):
    shard(folder, tmp_path / "shards")
    images = open_images(bucket(tmp_path / "shards", "shards"))
    asked = answers(
        lambda number, data: (
            data[:-1] if number == 1 else (_ for _ in ()).throw(RuntimeError("503")) if number == 2 else data
        )
    )
    assert images.read(0).shape == (24, 32, 3)
    assert len(asked) == 3


def test_a_server_that_stays_away_makes_an_unreadable_image(folder, tmp_path, bucket, answers):
    shard(folder, tmp_path / "shards")
    images = open_images(bucket(tmp_path / "shards", "shards"))
    asked = answers(lambda _, data: data[: len(data) // 2])
    with pytest.raises(UnreadableImage, match="bytes instead of .*, 3 times"):
        images.read(0)
    assert len(asked) == 3


def test_a_piece_that_was_damaged_on_the_disk_is_fetched_again(folder, tmp_path, bucket):
    shard(folder, tmp_path / "shards")
    images = open_images(bucket(tmp_path / "shards", "shards"))
    images.read(0)
    (piece,) = (path for path in (tmp_path / "cache" / "remote").glob("??/*"))
    content = bytearray(piece.read_bytes())
    content[700] ^= 1
    piece.write_bytes(content)
    assert images.read(0).shape == (24, 32, 3)
    piece.write_bytes(content[:900])
    assert images.read(0).shape == (24, 32, 3)
    # What the other side has is another shard.
    fsspec.filesystem("memory").pipe_file("/shards/shard-000000.tar", bytes(images.files[0].num_bytes))
    piece.unlink()
    with pytest.raises(UnreadableImage, match="checksum"):
        images.read(0)


def test_the_cache_keeps_what_was_read_last_within_its_bound(tmp_path):
    cache = PieceCache(tmp_path / "cache", limit=10_000)
    for number in range(30):
        cache.write(f"{number}", bytes([number]) * 1000)
        os.utime(cache._path(f"{number}"), (number, number))
    total = sum(path.stat().st_size for path in (tmp_path / "cache").glob("??/*"))
    assert total <= 10_000
    assert cache.read("29", 1000, 5, 10) == bytes([29]) * 10
    assert cache.read("0", 1000, 0, 10) is None
    assert cache.read("29", 999, 0, 10) is None  # of another size: removed
    assert cache.read("29", 1000, 0, 10) is None
    PieceCache(Path("/dev/null/none"), limit=10_000).write("0", b"x")  # no room costs nothing
    none = PieceCache(tmp_path / "none", limit=0)
    none.write("0", b"x")
    assert none.read("0", 1, 0, 1) is None and not (tmp_path / "none").exists()


def _write_and_read(folder: Path, seed: int, failed) -> None:
    cache, rng = PieceCache(folder, limit=20_000), np.random.default_rng(seed)
    for _ in range(300):
        number = int(rng.integers(0, 40))
        piece = bytes([number]) * 1000
        found = cache.read(f"{number}", 1000, 0, 1000)
        if found is None:
            cache.write(f"{number}", piece)
        elif found != piece:
            failed.set()


def test_many_processes_share_a_cache(tmp_path):
    fork = get_context("fork")
    failed = fork.Event()
    processes = [fork.Process(target=_write_and_read, args=(tmp_path, seed, failed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4 and not failed.is_set()
    assert not list(tmp_path.glob("??/.*"))
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 20_000


def test_pieces_join_at_their_borders(monkeypatch, bucket, tmp_path):
    monkeypatch.setattr(module, "PIECE_BYTES", 100)
    content = bytes(range(256)) * 3
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "f").write_bytes(content)
    file = RemoteFile(bucket(tmp_path / "x", "x") + "/f", len(content))
    for offset, size in ((0, 768), (99, 2), (100, 100), (250, 300), (760, 100), (700, 0), (767, 1)):
        assert file.read(offset, size) == content[offset : offset + size]
    file.forget(0, 768)
    assert not list((tmp_path / "cache" / "remote").glob("??/*"))


def test_threads_and_forks_read_at_once(folder, tmp_path, bucket):
    shard(folder, tmp_path / "shards")
    images = open_images(bucket(tmp_path / "shards", "shards"))
    expected = [images.read(i) for i in range(3)]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: images.read(i)})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(np.array_equal(found[i], expected[i]) for i in range(3))
    process = get_context("fork").Process(target=images.read, args=(2,))
    process.start()
    process.join(30)
    assert process.exitcode == 0


SECRET = "AKIAsecret"


@pytest.mark.parametrize(
    "url",
    [f"s3://{SECRET}:{SECRET}@bucket/x", f"https://{SECRET}@127.0.0.1/x", f"https://127.0.0.1/x?X-Amz-Signature={SECRET}",
     f"https://127.0.0.1/x#{SECRET}"],
)  # fmt: skip
def test_secrets_in_urls_are_refused_and_not_told(url, tmp_path, capsys):
    shown = Refused(capsys)(["pretrain", url, tmp_path / "run"], "credentials in the environment", out=tmp_path)
    assert SECRET not in shown
    (tmp_path / "list.txt").write_text(f"{url}\n")
    shown = Refused(capsys)(["check", tmp_path / "list.txt"], "credentials in the environment", out=tmp_path)
    assert SECRET not in shown


def test_errors_of_clients_keep_secrets(bucket, monkeypatch):
    def fail() -> None:
        raise RuntimeError(f"503 for https://{SECRET}:{SECRET}@host/x?signature={SECRET} and more")

    with pytest.raises(
        OSError, match=r"RuntimeError: 503 for https://\*\*\*@host/x\?\*\*\* and more, 3 times"
    ) as raised:
        module.retried(fail)
    assert SECRET not in str(raised.value) and raised.value.__cause__ is None and raised.value.__suppress_context__
    assert redacted("no secret in s3://bucket/a b") == "no secret in s3://bucket/a b"
    assert require_allowed("s3://bucket/x/") == "s3://bucket/x"


def test_urls_that_cannot_be_read(tmp_path, capsys, bucket, monkeypatch):
    refused = Refused(capsys)

    def refuses(url: str, *patterns: str) -> None:
        refused(["check", url], *patterns, out=tmp_path / "out")

    refuses("sftp://host/x", "protocol", "s3, https")
    refuses("memory://nothing", "no image|cannot be read")
    refuses("memory://nothing/list.csv", "cannot be read: No such file")
    fsspec.filesystem("memory").pipe_file("/broken/index.json", b"[]")
    refuses("memory://broken", "no index of shards")
    monkeypatch.setenv(cache_folder.GIGABYTES, "much")
    fsspec.filesystem("memory").pipe_file("/x/a.png", b"no image")
    with pytest.raises(UserError, match="SELFPATCH_CACHE_GB is 'much'"):
        open_images("memory://x").read(0)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    refuses("memory://x", r"pip install 'selfpatch\[remote\]'")
