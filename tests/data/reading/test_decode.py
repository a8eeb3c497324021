"""Every kind of image file comes out as people see it, or is refused with a reason."""

import contextlib
import io
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from selfpatch.data.reading import image_file, jpeg
from selfpatch.data.reading.decode import UnreadableImage, read_image, read_size
from tests.data.reading.made_files import png_bytes

ROWS, COLUMNS = 40, 60


@pytest.fixture
def photo() -> np.ndarray:
    """Smooth, colourful, and different in each of the eight orientations."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    return np.stack([x * 4, y * 6, 255 - (x + y) * 2], axis=-1).astype(np.uint8)


def write(path: Path, image: Image.Image, **settings) -> Path:
    image.save(path, **settings)
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_pixels_belong_to_the_caller(photo, tmp_path, ending, mode):
    if (ending, mode) not in {("jpg", "RGBA"), ("jpg", "P"), ("png", "CMYK"), ("webp", "CMYK")}:
        pixels = read_image(write(tmp_path / f"a.{ending}", Image.fromarray(photo).convert(mode)))
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


def over_white(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(photo * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)


# 1. Kinds of pixels


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_rgb_exactly(photo, tmp_path, ending):
    settings = {"lossless": True} if ending == "webp" else {}
    assert difference(read_image(write(tmp_path / f"a.{ending}", Image.fromarray(photo), **settings)), photo) == 0


@pytest.mark.parametrize(
    "settings", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_as_pillow(photo, tmp_path, mode, settings):
    path = write(tmp_path / "a.jpg", Image.fromarray(photo).convert(mode), **settings)
    assert difference(read_image(path), np.asarray(Image.open(path).convert("RGB"))) <= 1
    if mode == "CMYK":
        assert difference(read_image(path), photo) < 20  # Pillow writes it inverted, as Adobe does


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_grey_becomes_three_equal_channels(photo, tmp_path, ending):
    gray = photo[..., 0]
    pixels = read_image(write(tmp_path / f"a.{ending}", Image.fromarray(gray)))
    assert difference(pixels, np.repeat(gray[..., None], 3, -1)) <= (2 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_one_bit(photo, tmp_path, ending):
    black_and_white = Image.fromarray(photo).convert("1")
    pixels = read_image(write(tmp_path / f"a.{ending}", black_and_white))
    assert difference(pixels, np.repeat(255 * np.asarray(black_and_white, np.uint8)[..., None], 3, -1)) == 0


def test_palette(photo, tmp_path):
    palette = Image.fromarray(photo).quantize(64)
    for ending in ("png", "tif"):
        pixels = read_image(write(tmp_path / f"a.{ending}", palette))
        assert difference(pixels, np.asarray(palette.convert("RGB"))) == 0


def test_palette_with_transparency_shows_white(photo, tmp_path):
    palette = Image.fromarray(photo).quantize(64)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 5] = 255
    assert difference(read_image(write(tmp_path / "one.png", palette, transparency=5)), expected) == 0
    alphas = bytes([255, 255, 255, 255, 255, 0] + [255] * 58)  # one alpha for each colour
    assert difference(read_image(write(tmp_path / "many.png", palette, transparency=alphas)), expected) == 0


def test_one_color_of_rgb_is_transparent(photo, tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(photo), transparency=tuple(int(v) for v in photo[3, 4]))
    photo[3, 4] = 255
    assert difference(read_image(path), photo) == 0


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_alpha_is_composited_over_white(photo, tmp_path, ending):
    alpha = np.linspace(0, 255, ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([photo, alpha]))
    settings = {"lossless": True, "exact": True} if ending == "webp" else {}
    pixels = read_image(write(tmp_path / f"a.{ending}", rgba, **settings))
    assert difference(pixels, over_white(photo, alpha[..., None])) <= 1
    assert (pixels[0, 0] == 255).all()  # fully transparent


def test_grey_with_alpha(photo, tmp_path):
    gray, alpha = photo[..., 0], photo[..., 1]
    path = write(tmp_path / "a.png", Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]))
    assert difference(read_image(path), np.repeat(over_white(gray, alpha)[..., None], 3, -1)) <= 1


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_a_channel(tmp_path, ending, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (ROWS, COLUMNS, channels), dtype=np.uint16)
    deep[0, :2] = [[0], [65535]]
    if channels == 4:
        deep[..., 3] = 65535
    assert cv2.imwrite(str(tmp_path / f"a.{ending}"), deep if channels == 1 else deep[..., [2, 1, 0, 3][:channels]])
    pixels = read_image(tmp_path / f"a.{ending}")
    expected = np.rint(deep[..., :3] / 257).astype(np.uint8)
    assert difference(pixels, np.repeat(expected, 3, -1) if channels == 1 else expected) <= (0 if channels == 1 else 1)
    assert pixels[0, 0].max() == 0
    assert pixels[0, 1].min() == 255


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("big_tiff", [False, True])
def test_both_byte_orders_of_16_bit_grey(photo, tmp_path, mode, big_tiff):
    deep = (photo[..., 0].astype(np.uint16) * 257).astype("<u2" if mode == "I;16" else ">u2")
    image = Image.frombytes(mode, (COLUMNS, ROWS), deep.tobytes())
    path = write(tmp_path / "a.tif", image, big_tiff=big_tiff and mode == "I;16")
    assert difference(read_image(path), np.repeat(photo[..., :1], 3, -1)) == 0


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    with pytest.raises(UnreadableImage, match="convert them to 8 or 16 bits"):
        read_image(write(tmp_path / "a.tif", Image.new(mode, (8, 8))))


def test_five_channels_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImage, match="unusual kind of pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_thin_images(tmp_path, ending, size):
    assert read_image(write(tmp_path / f"a.{ending}", Image.new("RGB", size, "red"))).shape == (size[1], size[0], 3)


# 2. Orientation, frames, names


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_upright(photo, tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"quality": 95, "subsampling": 0} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    path = write(tmp_path / f"a.{ending}", Image.fromarray(photo), exif=exif, **settings)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert difference(read_image(path), expected) <= 1
    assert read_image(path).shape == ((ROWS, COLUMNS, 3) if orientation <= 4 else (COLUMNS, ROWS, 3))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [0, 9, 65535, None])
def test_meaningless_or_damaged_exif_is_passed_over(photo, tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation or 0
    data = exif.tobytes() if orientation is not None else b"Exif\0\0no metadata at all"
    settings = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    path = write(tmp_path / f"a.{ending}", Image.fromarray(photo), exif=data, **settings)
    assert difference(read_image(path), photo) < 10


def test_exif_behind_other_metadata(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "a.jpg", Image.fromarray(photo), exif=exif)
    data = path.read_bytes()
    other = b"\xff\xe3" + (60_002).to_bytes(2) + bytes(60_000)
    path.write_bytes(data[:2] + 2 * other + b"\xff" + data[2:])  # a marker may begin with FF twice
    assert read_image(path).shape == (COLUMNS, ROWS, 3)


def test_orientation_in_xmp_alone_means_nothing(photo, tmp_path):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    path = write(tmp_path / "a.jpg", Image.fromarray(photo), xmp=xmp)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert read_image(path).shape == (ROWS, COLUMNS, 3)
    assert read_size(path) == (ROWS, COLUMNS)


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_first_frame_counts(photo, tmp_path, ending):
    settings = {"lossless": True} if ending == "webp" else {}
    path = write(tmp_path / f"a.{ending}", Image.fromarray(photo), save_all=True,
                 append_images=[Image.new("RGB", (COLUMNS, ROWS))], **settings)  # fmt: skip
    assert difference(read_image(path), photo) == 0


def test_content_counts_not_the_name(photo, tmp_path):
    path = write(tmp_path / "a.jpg", Image.fromarray(photo), format="PNG")
    assert difference(read_image(path), photo) == 0


def test_other_formats_are_not_opened(photo, tmp_path):
    for format_ in ("PPM", "ICO", "PDF", "TGA", "EPS"):
        path = write(tmp_path / "a.png", Image.fromarray(photo), format=format_)
        with pytest.raises(UnreadableImage, match="not a JPEG, PNG, WebP, TIFF, BMP, GIF or NumPy file"):
            read_image(path)
    (tmp_path / "text.bmp").write_text("BMs are two letters, no picture")
    with pytest.raises(UnreadableImage, match="not a JPEG"):
        read_image(tmp_path / "text.bmp")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_bmp_and_the_first_frame_of_gif(photo, tmp_path, mode):
    image = Image.fromarray(photo).quantize(64) if mode == "P" else Image.fromarray(photo).convert(mode)
    pixels = read_image(write(tmp_path / "a.bmp", image))
    assert difference(pixels, np.asarray(image.convert("RGB"))) == 0
    if mode != "RGB":
        path = write(tmp_path / "a.gif", image, save_all=True, append_images=[Image.new("RGB", image.size, "red")])
        assert difference(read_image(path), np.asarray(image.convert("RGB"))) == 0
        assert read_size(path) == (ROWS, COLUMNS)


def test_transparency_of_gif_shows_white(photo, tmp_path):
    palette = Image.fromarray(photo).quantize(64)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 5] = 255
    assert difference(read_image(write(tmp_path / "a.gif", palette, transparency=5)), expected) == 0


def test_name_without_utf8(photo, tmp_path):
    path = write(tmp_path / "a.png", Image.fromarray(photo))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    path.rename(odd)
    assert difference(read_image(odd), photo) == 0


# 3. What is refused


def test_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "fifo.jpg")
    with pytest.raises(UnreadableImage, match="a folder"):
        read_image(tmp_path)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "missing.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "link.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match="empty file"):
        read_image(tmp_path / "empty.jpg")
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(2 * image_file.MAX_BYTES)  # takes no room on disk
    with pytest.raises(UnreadableImage, match="GiB"):
        read_image(tmp_path / "huge.jpg")


@pytest.mark.parametrize(
    "ending", ["jpg", "progressive.jpg", "cmyk.jpg", "png", "webp", "lzw.tif", "jpeg.tif", "raw.tif", "bmp", "gif"]
)
def test_truncated_anywhere(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    settings = {
        "progressive.jpg": {"progressive": True},
        "lzw.tif": {"compression": "tiff_lzw"},
        "jpeg.tif": {"compression": "jpeg"},
    }.get(ending, {})
    image = Image.fromarray(noise).convert("CMYK" if ending.startswith("cmyk") else "RGB")
    whole = write(tmp_path / f"a.{ending}", image, **settings)
    expected, data = read_image(whole), whole.read_bytes()
    part = tmp_path / "part"
    reasons = []
    for length in range(0, len(data), 10):
        part.write_bytes(data[:length])
        try:
            pixels = read_image(part)
        except UnreadableImage as error:
            reasons.append(str(error))
        else:
            # Only what comes after the pixels may be missing.
            assert difference(pixels, expected) == 0
    assert len(reasons) > 0.9 * len(data) / 10
    assert all(0 < len(reason) < 200 and "\n" not in reason for reason in reasons)


def test_truncated_jpeg_with_an_end_marker(tmp_path):
    """What Pillow lets pass with a grey lower half."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = write(tmp_path / "a.jpg", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:3000] + b"\xff\xd9")
    with pytest.raises(UnreadableImage, match="JPEG"):
        read_image(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "bmp", "gif"])
def test_random_damage_never_raises_anything_else(photo, tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", Image.fromarray(photo))
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(4, min(len(data), 400), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UnreadableImage):
            assert read_image(path).ndim == 3


def test_claimed_size_is_judged_before_decoding(tmp_path, monkeypatch):
    bombs = {"a.png": png_bytes(np.zeros((1, 1), int), 8, 2)}
    bombs["a.png"] = bombs["a.png"][:16] + struct.pack(">II", 100_000, 100_000) + bombs["a.png"][24:]
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "JPEG")
    start = small.getvalue().index(b"\xff\xc0") + 5
    bombs["a.jpg"] = small.getvalue()[:start] + struct.pack(">HH", 65000, 65000) + small.getvalue()[start + 4 :]
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage, match="more than 178,956,970"):
            read_image(tmp_path / name)
    paths = [write(tmp_path / f"b.{ending}", Image.new("RGB", (50, 50))) for ending in ("jpg", "png", "webp", "tif")]
    monkeypatch.setattr(image_file, "MAX_PIXELS", 2000)
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for path in paths:
        with pytest.raises(UnreadableImage, match="50 x 50 pixels, more than 2,000"):
            read_image(path)


def test_no_warning_leaks_and_filters_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns above, raises above twice that
    path = write(tmp_path / "a.png", Image.new("RGB", (40, 40)))
    before = list(warnings.filters)
    assert read_image(path).shape == (40, 40, 3)
    assert warnings.filters == before
