"""Tar files and indexes by somebody who means harm: members are read or left out, nothing is unpacked, nothing hangs."""

import io
import json
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.commands.shard import shard
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.shards.tar_headers import DamagedTar, scan_tar
from selfpatch.errors import UserError
from tests.security.mutations import DEEP, mutated, mutated_tree
from tests.security.reading import mistakes, read_all


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "", **changes: bytes) -> bytes:
    """A header of a tar file, with fields put in afterwards and its checksum right."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    places = {"size": 124, "mtime": 136, "magic": 257, "checksum": 148, "sparse": 386}
    for field, value in changes.items():
        block[places[field] : places[field] + len(value)] = value
    if "checksum" not in changes:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def member(name: str, content: bytes) -> bytes:
    return header(name, size=len(content)) + content + bytes(-len(content) % 512)


def pax(records: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    return header("pax", kind, size=len(records) if size is None else size) + records + bytes(-len(records) % 512)


def record(key: str, value: str) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(f"{length}") + len(key) + len(value) + 3:
        length = len(f"{length}") + len(key) + len(value) + 3
    return f"{length} {key}={value}\n".encode()


GOOD, END = member("good.png", png()), bytes(1024)
# What comes behind a good image, and how many images are found with it.
CRAFTED = {
    "names that leave the folder": (member("../../canary.png", png()) + member("/canary/x.png", png()), 3),
    "a link": (header("l.png", tarfile.SYMTYPE, link="/etc/passwd"), 1),
    "a hard link": (header("l.png", tarfile.LNKTYPE, link="good.png"), 1),
    "a device": (header("d.png", tarfile.CHRTYPE), 1),
    "a pipe": (header("p.png", tarfile.FIFOTYPE), 1),
    "a folder": (header("f.png/", tarfile.DIRTYPE), 1),
    "a second member of the name": (member("good.png", png(1)), 1),
    "sparse, of GNU": (header("s.png", tarfile.GNUTYPE_SPARSE, size=0, sparse=b"0" * 11 + b"\0" + b"77777777777\0"), 1),
    "sparse, by PAX": (pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "s.png") + record("GNU.sparse.realsize", "99")) + header("s.png", size=512) + b"1\n0\n99\n".ljust(512, b"\0"), 1),
    "sparse, by PAX, of 10 GB": (pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")) + header("s.png", size=512) + b"9" * 512, 1),
    "10 GB": (header("h.png", size=10 * 2**30), 1),
    "an empty image": (member("e.png", b""), 2),
    "a size below zero": (header("n.png") [:124] + b"\xff" * 12 + header("n.png")[136:], 1),
    "a size of 2^95": (header("n.png")[:124] + b"\x80" + b"\xff" * 11 + header("n.png")[136:], 1),
    "a size of letters": (header("n.png")[:124] + b"abcdefghijk\0" + header("n.png")[136:], 1),
    "a wrong checksum": (header("n.png", checksum=b"0000000\0"), 1),
    "a long name of 10 GB": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=10 * 2**30), 1),
    "a long name of 2 MB": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**21) + b"a" * 2**21 + member("x.png", png()), 1),
    "long names of long names": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1) * 3000, 1),
    "a PAX record of digits": (pax(b"1" * 900_000) + member("x.png", png()), 1),
    "a PAX record of 10 GB": (pax(b"", size=10 * 2**30), 1),
    "a PAX size below zero": (pax(record("size", "-99")) + member("x.png", png()), 1),
    "a PAX size of many digits": (pax(record("size", "9" * 199)) + member("x.png", png()), 1),
    "a PAX record without an end": (pax(b"99999 path=x") + member("x.png", png()), None),
    "a PAX record of length 0": (pax(b"0 path=x\n") + member("x.png", png()), None),
    "thousands of global records": (b"".join(pax(record(f"k{i:05d}", "1"), b"g") for i in range(3000)) + member("x.png", png()), 1),
    "text": (b"#!/bin/sh\ntouch canary\n" + bytes(512), 1),
    "cut in a header": (header("x.png", size=5)[:300], 1),
    "cut in a member": (header("x.png", size=5000) + b"abc", 1),
    "escape sequences in a name": (member("\x1b[31m.png", png()), 2),
    "a name that is no UTF-8": (member("x.png", png()).replace(b"x.png", b"\xff.png"), None),
}  # fmt: skip


def with_right_checksum(block: bytes) -> bytes:
    """Of a header of 512 bytes that was changed."""
    found = bytearray(block)
    found[148:156] = b" " * 8
    found[148:156] = b"%06o\0 " % sum(found[:512])
    return bytes(found)


@pytest.mark.parametrize("name", CRAFTED)
def test_every_crafted_tar(name, tmp_path, monkeypatch):
    content, count = CRAFTED[name]
    if name.startswith("a size") and len(content) == 512:
        content = with_right_checksum(content)
    (tmp_path / "a").mkdir()
    cut = name.startswith("cut")
    (tmp_path / "a" / "0.tar").write_bytes(GOOD + content + (b"" if cut else END))
    started = time.process_time()
    images = open_images(tmp_path / "a")
    assert count is None or len(images) == count, [images.name(i) for i in range(len(images))]
    for index in range(len(images)):
        try:
            assert images.read(index).shape == (16, 16, 3)
        except UnreadableImage:
            assert index > 0
        assert "\x1b" not in images.name(index)
    assert time.process_time() - started < 5
    if count == 1 and name != "a folder":
        assert images.notes, "left out without a word"
    assert not list(tmp_path.parent.glob("**/canary*")) and not list(tmp_path.parent.parent.glob("canary*"))


def test_headers_are_read_and_nothing_else(tmp_path):
    """Whatever a header claims: a member of a terabyte in a sparse file is passed over."""
    path = tmp_path / "0.tar"
    with path.open("wb") as file:
        file.write(GOOD + header("h.png", size=2**31))
        file.seek(2**31, io.SEEK_CUR)
        file.write(member("last.png", png()) + END)

    class Counted(io.FileIO):
        num_read = 0

        def read(self, size=-1):
            data = super().read(size)
            Counted.num_read += len(data)
            return data

    with Counted(path) as file:
        found = [(m.name, m.problem) for m in scan_tar(file, path.stat().st_size)]
    assert found == [("good.png", ""), ("h.png", "too large for an image"), ("last.png", "")]
    assert Counted.num_read < 5000


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b\x08" + bytes(600), b"PK\x03\x04" + bytes(600), b"x" * 511, END, b"\xff" * 4096]
)
def test_what_is_no_tar(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="no image in"):
        open_images(tmp_path / "a.tar")


def test_a_link_or_a_pipe_in_the_place_of_a_shard(tmp_path):
    import os

    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "a.png").write_bytes(png())
    shard(tmp_path / "i", tmp_path / "s")
    tar = tmp_path / "s" / "shard-000000.tar"
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(UserError, match="is of other shards"):
        open_images(tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    index["shards"][0]["num_bytes"] = 0
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="beyond its shard"):
        open_images(tmp_path / "s")


@pytest.fixture
def indexed(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for seed in range(3):
        (tmp_path / "images" / f"{seed}.png").write_bytes(png(seed))
    shard(tmp_path / "images", tmp_path / "shards")
    return tmp_path / "shards"


def test_an_index_that_lies(indexed):
    def refuses(name: str, change, match: str) -> None:
        path = indexed / "index" / f"{name}.npy"
        kept, values = path.read_bytes(), np.load(path)
        change(values)
        np.save(path, values)
        with pytest.raises(UserError, match=match):
            open_images(indexed)
        path.write_bytes(kept)

    size = (indexed / "shard-000000.tar").stat().st_size
    for offset in (-1, 0, size - 10, 2**62, 2**63 - 1, -(2**63)):
        refuses("members", lambda m, offset=offset: m["offset"].__setitem__(1, offset), "beyond its shard")
    for length in (size, 2**32 - 1):
        refuses("members", lambda m, length=length: m["size"].__setitem__(1, length), "beyond its shard")
    for end in (-5, 0, 2**62, 1000):
        refuses("ends", lambda e, end=end: e.__setitem__(2, end), "a name is empty|names end elsewhere")
    refuses("names", lambda n: n.__setitem__(slice(None), 65), "a name is empty")
    (indexed / "index" / "members.npy").write_bytes((indexed / "index" / "ends.npy").read_bytes())
    with pytest.raises(UserError, match=r"members.npy cannot be read"):
        open_images(indexed)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "{}", '"selfpatch:shards"', "[" * 100_000, '{"format": ' * 20_000, "1" * 10_000, "\xff", '{"format": "selfpatch:shards", "version": 2}',
     '{"format": "selfpatch:shards", "version": 1, "shards": null}'],
)  # fmt: skip
def test_an_index_json_that_is_none(text, indexed):
    content = text if "selfpatch:shards" in text else text + " " * 0
    (indexed / "index.json").write_text(content, encoding="latin-1")
    if b"selfpatch:shards" in (indexed / "index.json").read_bytes()[:200]:
        with pytest.raises(UserError, match=r"no index of shards|of version 2"):
            open_images(indexed)
    else:  # no file of this format: the tar files are read by their headers
        assert len(open_images(indexed)) == 3
    from selfpatch.data.shards.shard_index import parse_header

    with pytest.raises(UserError, match=r"no index of shards|of version 2"):
        parse_header((indexed / "index.json").read_bytes(), "index.json")


def test_an_index_names_shards_beside_it(indexed):
    index = json.loads((indexed / "index.json").read_text())
    for name in ("../images/0.png", "/etc/passwd", "..", "", "a\0b", 3, None):
        index["shards"][0]["file"] = name
        (indexed / "index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="no index of shards"):
            open_images(indexed)


def test_mutated_indexes(indexed, tmp_path):
    """300 of index.json and of the files beside it, from a seeded generator: as they were, or refused in words."""
    rng, folder = np.random.default_rng(0), tmp_path / "files"
    tree = json.loads((indexed / "index.json").read_text())
    arrays = sorted((indexed / "index").iterdir())
    folder.mkdir()
    num_refused = 0
    for i in range(300):
        shutil.rmtree(folder / "s", ignore_errors=True)
        shutil.copytree(indexed, folder / "s")
        if i % 2:
            content = json.dumps(
                mutated_tree(tree, rng)
                if i % 4 == 1
                else tree | {"shards": DEEP if i % 8 == 3 else [tree["shards"][0]] * i}
            )
            (folder / "s" / "index.json").write_text(content, errors="backslashreplace")
        else:
            file = arrays[i // 2 % len(arrays)]
            (folder / "s" / "index" / file.name).write_bytes(mutated(file.read_bytes(), rng))
        try:
            images = open_images(folder / "s")
            for index in range(len(images)):
                with pytest.MonkeyPatch.context():
                    try:
                        images.read(index)
                    except UnreadableImage:
                        num_refused += 1
        except UserError:
            num_refused += 1
    assert num_refused > 150


def test_mutated_headers_in_this_process():
    """600 of one tar file, half of them with checksums that are right again: ended, or passed over."""
    rng = np.random.default_rng(1)
    whole = (
        GOOD
        + pax(record("path", "long.png"))
        + member("x.png", png(1))
        + header("l.png", tarfile.SYMTYPE)
        + member("y.png", png(2))
        + END
    )
    starts = [0, len(GOOD), len(GOOD) + 1024]
    found = damaged = 0
    for i in range(600):
        content = bytearray(whole)
        start = starts[i % 3]
        block = bytearray(mutated(bytes(content[start : start + 512]), rng)[:512].ljust(512, b"\0"))
        content[start : start + 512] = with_right_checksum(bytes(block)) if i % 2 else block
        try:
            for one in scan_tar(io.BytesIO(bytes(content)), len(content)):
                found += 1
                assert one.problem or 0 <= one.offset <= one.offset + one.size <= len(content)
        except DamagedTar:
            damaged += 1
    assert found > 500 and 100 < damaged < 600


def test_mutated_tars_within_limits(tmp_path, monkeypatch):
    """200 whole files in a process of 2 GB."""
    rng, folder = np.random.default_rng(2), tmp_path / "files"
    folder.mkdir()
    whole = GOOD + member("../x.png", png(1)) + pax(record("path", "long.png")) + member("z.png", png(2)) + END
    for i in range(200):
        (folder / f"{i:03d}.tar").write_bytes(mutated(whole, rng, whole[::-1]))
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    outcomes = read_all("manifests", folder)
    assert not mistakes(outcomes), mistakes(outcomes)[:3]
    assert len(outcomes) == 200 and not list(tmp_path.glob("**/canary*"))
