"""Image files and folders by somebody who means harm: the reader says no, or reads pixels, and nothing else happens."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.image_folder import ImageFolder
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage, read_image
from tests.data.reading.made_files import png_chunk
from tests.security import seeds
from tests.security.reading import read_all


def saved(image: Image.Image, format: str, **settings) -> bytes:
    image.save(content := io.BytesIO(), format, **settings)
    return content.getvalue()


SMALL = Image.new("RGB", (16, 16), "red")
JPEG = saved(SMALL, "JPEG")


def png(columns: int, rows: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def jpeg_of_size(rows: int, columns: int) -> bytes:
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", rows, columns) + JPEG[place + 4 :]


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + b"\0" * 64


def npz(content: bytes) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../canary.npy", content)
    return made.getvalue()


def pickled_array() -> bytes:
    np.save(made := io.BytesIO(), np.array([[{}]], object), allow_pickle=True)
    return made.getvalue()


ZEROS = zlib.compress(b"\0" * 2**24)
REFUSED = {
    "png of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1, png_chunk(b"IDAT", ZEROS)),
    "png bomb": png(30_000, 30_000, png_chunk(b"IDAT", ZEROS * 64)),
    "jpeg of 65500 pixels a side": jpeg_of_size(65_500, 65_500),
    "bmp of huge size": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif of huge size": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
    "npy of huge size": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
    "npy of more digits than a number has": npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'9' * 60}, 2), }}"),
    "npy of deep shape": npy("{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 60 + ", }"),
    "npy of objects": pickled_array(),
    "npz of objects": npz(pickled_array()),
    "npz bomb": npz(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (40000, 40000), }") + b"\0" * 2**26),
    "truncated jpeg": JPEG[: len(JPEG) // 2 + 200],
    "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * 3_000_000 + b"\0",
    "jpeg of a million segments": JPEG[:2] + b"\xff\xfe\0\2" * 1_000_000 + JPEG[2:],
    "empty": b"",
    "text": b"#!/bin/sh\ntouch canary\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n(canary) (w) file\n",
}  # fmt: skip
READ = {
    "a row of 60000 pixels": saved(Image.new("RGB", (60_000, 1)), "PNG"),
    "a column of 60000 pixels": saved(Image.new("RGB", (1, 60_000)), "PNG"),
    "cmyk": saved(SMALL.convert("CMYK"), "JPEG"),
    "16 bits": saved(Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG"),
    "animated": saved(SMALL, "GIF", save_all=True, append_images=[SMALL] * 50),
    "png under the name of a jpeg": saved(SMALL, "PNG"),
}


def test_every_crafted_image(tmp_path):
    names = {f"{i:02d}.jpg": name for i, name in enumerate([*REFUSED, *READ])}
    for file, name in names.items():
        (tmp_path / file).write_bytes((REFUSED | READ)[name])
    outcomes = read_all("images", tmp_path)
    assert {names[o.name]: o for o in outcomes if o.kind not in ("read", "refused")} == {}
    for file, name in names.items():
        if name in REFUSED:
            with pytest.raises(UnreadableImage):
                read_image(tmp_path / file)
        else:
            assert read_image(tmp_path / file).shape[2] == 3
    assert not list(tmp_path.parent.glob("**/canary*"))


def test_scans_that_cost_time_and_no_bytes():
    """A progressive JPEG of the largest size with thousands of scans would take minutes."""
    content = saved(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = content[content.index(b"\xff\xda") : -2]
    place = content.index(b"\xff\xc2") + 5
    large = content[:place] + struct.pack(">HH", 10_000, 10_000) + content[place + 4 : -2]
    from selfpatch.data.reading.decode import decode_image

    with pytest.raises(UnreadableImage, match="scans"):
        decode_image(large + scan * 500 + b"\xff\xd9")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff\x1b[31m.jpg")))
    odd.write_bytes(JPEG)
    images = ImageFolder(tmp_path)
    assert len(images) == 5
    readable = []
    for i in range(len(images)):
        try:
            images.read(i)
            readable.append(images.name(i))
        except UnreadableImage:
            continue
    assert readable == ["\\xff\\x1b[31m.jpg"]


@pytest.mark.parametrize("links", [{"a/loop": "a"}, {"a/b": "c", "c/d": "a"}, {"a/etc": "/etc"}])
def test_links_to_folders_are_not_followed(links, tmp_path):
    for folder in ("a", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(JPEG)
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    images = ImageFolder(tmp_path)
    assert [images.name(i) for i in range(len(images))] == ["a/x.jpg", "c/x.jpg"]
    assert images.num_links == len(links)


def test_a_tar_is_no_image(tmp_path):
    """Archives are never unpacked: there is nothing that `../`, links, devices or huge members could reach."""
    import tarfile

    with tarfile.open(tmp_path / "a.jpg", "w") as archive:
        for name, kind in (("../canary.jpg", tarfile.REGTYPE), ("link.jpg", tarfile.SYMTYPE), ("dev", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(UnreadableImage, match="not a "):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.tar")
    images = open_images(tmp_path / "a.tar")  # a shard; more of them in test_crafted_shards.py
    for index in range(len(images)):
        with pytest.raises(UnreadableImage):
            images.read(index)
    assert not (tmp_path.parent / "canary.jpg").exists()


MANIFESTS = {
    "half a character.jsonl": b'{"path": "\\ud800.jpg"}\n',
    "deep.jsonl": b"[" * 100_000,
    "digits.jsonl": b'{"path": ' + b"1" * 10_000 + b"}",
    "zero byte.csv": b"path\na\0b.jpg\n",
    "a long field.csv": b'path\n"' + b"a" * 1_000_000 + b'"\n',
    "no table.parquet": b"PAR1" + b"\xff" * 100 + b"PAR1",
    "not there.txt": b"../../../../etc/nothing\n",
    "device.txt": b"/dev/zero\n",
}


def test_every_crafted_manifest(tmp_path):
    for name, content in MANIFESTS.items():
        (tmp_path / name).write_bytes(content)
    import pyarrow as pa
    from pyarrow import parquet

    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, np.int8)), ["a" * 1000])
    parquet.write_table(pa.table({"path": rows}), tmp_path / "rows of one string.parquet")
    assert (tmp_path / "rows of one string.parquet").stat().st_size < 4_000_000  # 20 GB of names
    outcomes = read_all("manifests", tmp_path)
    assert [outcome for outcome in outcomes if outcome.kind != "refused"] == []


def test_a_manifest_shows_nothing_of_other_files(tmp_path):
    (tmp_path / "secret.txt").write_text("canary")
    (tmp_path / "a.txt").write_text("secret.txt\n")
    images = open_images(tmp_path / "a.txt")
    with pytest.raises(UnreadableImage) as refused:
        images.read(0)
    assert "canary" not in str(refused.value)


def test_seeds_are_whole(tmp_path):
    """Or mutations of them would test nothing."""
    for i, (ending, content) in enumerate(seeds.image_seeds()):
        (tmp_path / f"{i:02d}.{ending}").write_bytes(content)
        if ending not in ("npy", "npz", "tif"):
            read_image(tmp_path / f"{i:02d}.{ending}")
