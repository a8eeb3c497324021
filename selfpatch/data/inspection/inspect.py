"""One image file read once: how it is stored, its content, its light and sharpness; or the kind of damage."""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from jaxtyping import Float32
from PIL import Image

from selfpatch.data.location import FileLocation, Location
from selfpatch.data.reading.decode import UnreadableImage, decode_image
from selfpatch.data.reading.image_file import first_line
from selfpatch.data.reading.stored import StoredImage, open_stored
from selfpatch.output.printable import printable

# Sides in pixels of the gray picture that hashes and sharpness are taken of: large images are not sharper than small.
HASH_SIDE, SHARPNESS_SIDE = 64, 256
# Standard deviation of gray in [0, 1] below which a picture shows nothing.
ONE_COLOR = 1e-3
# Kinds of damage by words of the reasons, the first that fits.
_DAMAGE = (
    ("empty", ("empty file",)),
    ("no image", ("not a JPEG", "not a ")),
    ("cannot be opened", ("ermission denied", "No such file", "nput/output error", "a folder", "not a regular file")),
    ("too large", ("more than", "too many")),
    ("unsupported", (
        "range is not known", "convert", "channels", "an array of", "an archive of", "unusual kind", "compression",
        "lossless", "arithmetic", "version",
    )),
    ("cut short", ("truncated", "ends too early", "too short", "missing", "EOF", "premature", "incomplete")),
)  # fmt: skip
ALL_DAMAGE = (*(kind for kind, _ in _DAMAGE), "damaged")


class Inspected(NamedTuple):
    """One file: what it holds, or the reason why nothing can be read.

    Args:
        size: (rows, columns), upright.
        format: by content, e.g. "JPEG".
        kind: how pixels are stored, e.g. "gray".
        num_channels, num_bits, number: as stored, alpha not counted; "unsigned", "signed" or "float".
        digest: SHA-256 of the file, in hex.
        hashes: perceptual hashes (pHash, dHash) of 64 bits each; None: a picture of one color has none.
        mean, std: per channel, of values in [0, 1]; of numbers without a known range as they are.
        brightness: mean of the gray picture in [0, 1]; contrast: its standard deviation.
        sharpness: natural logarithm of the variance of its Laplacian, relative to that of the picture.
        warning: of the decoder, though all pixels are there.
        damage: one of ALL_DAMAGE, with the reason in `problem`.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    format: str = ""
    kind: str = ""
    num_channels: int = 3
    num_bits: int = 8
    number: str = "unsigned"
    digest: str = ""
    hashes: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0
    warning: str = ""
    problem: str = ""
    damage: str = ""

    @property
    def name(self) -> str:
        return printable(self.path)


def inspect_image(where: Path | Location, pages: str = "auto") -> Inspected:
    """Read a file whole; never raises."""
    location = FileLocation(where) if isinstance(where, Path) else where
    try:
        return _inspect(location.path, location.read_bytes(checked=True), pages)
    except UnreadableImage as error:
        problem = printable(" ".join(str(error).split()))
        return Inspected(location.path, problem=problem, damage=damage_of(problem))


def damage_of(problem: str) -> str:
    """The kind of damage of a reason in words."""
    return next((kind for kind, words in _DAMAGE if any(word in problem for word in words)), "damaged")


def _inspect(path: Path, data: bytes, pages: str) -> Inspected:
    # 1. As training would read it: 8-bit RGB where that holds all, else the stored numbers.
    try:
        stored = open_stored(data, pages)
    except Exception:  # as many kinds as for damaged pixels; what reads 8-bit RGB has the better reasons
        stored = None
    if stored is None or stored.is_plain:
        image = decode_image(data)
        values, format_, kind, warning = image.pixels, image.format, image.kind, image.warning
        gray = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        means, stds = (numbers.ravel() / 255 for numbers in cv2.meanStdDev(image.pixels))
    else:
        values = _scaled(stored)
        format_, kind, warning = stored.format, stored.kind, ""
        gray = values.mean(axis=2)
        planes = values.reshape(-1, values.shape[2])
        means, stds = planes.mean(axis=0, dtype=np.float64), planes.std(axis=0, dtype=np.float64)
    # 2. Its light, and what it looks like.
    contrast = float(gray.std())
    return Inspected(
        path,
        values.shape[:2],
        format_,
        kind,
        num_channels=3 if stored is None else stored.num_colors,
        num_bits=8 if stored is None else max(stored.num_bits, 8),
        number="unsigned" if stored is None else stored.number,
        digest=hashlib.sha256(data).hexdigest(),
        hashes=None if contrast < ONE_COLOR else perceptual_hashes(gray),
        mean=tuple(means.tolist()),
        std=tuple(stds.tolist()),
        brightness=float(gray.mean()),
        contrast=contrast,
        sharpness=_sharpness(gray),
        warning=printable(warning),
    )


def _scaled(stored: StoredImage) -> Float32[np.ndarray, "H W C"]:
    """Values in [0, 1] of unsigned numbers, others as they are; without alpha, and 0 where there is no number."""
    try:
        values = stored.load()[..., : stored.num_colors].astype(np.float32)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise nearly anything at damaged bytes
        raise UnreadableImage(f"damaged {stored.format} ({first_line(error)})") from error
    is_known = stored.number == "unsigned" and stored.num_bits <= 16
    return np.nan_to_num(values, nan=0, posinf=0, neginf=0) / np.float32(2**stored.num_bits - 1 if is_known else 1)


def perceptual_hashes(gray: Float32[np.ndarray, "H W"]) -> tuple[int, int]:
    """pHash (low frequencies) and dHash (gradients) of a picture, stretched to its own range: 64 bits each."""
    small = cv2.resize(gray, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())
    picture = Image.fromarray(np.rint(255 * (small - low) / max(high - low, 1e-12)).astype(np.uint8))
    bits = (found.hash for found in (imagehash.phash(picture), imagehash.dhash(picture)))
    of_phash, of_dhash = (int.from_bytes(np.packbits(found).tobytes(), "big") for found in bits)
    return of_phash, of_dhash


def _sharpness(gray: Float32[np.ndarray, "H W"]) -> float:
    """Logarithm of the variance of the Laplacian, relative to that of the picture: no matter how bright it is."""
    scale = SHARPNESS_SIDE / min(gray.shape)
    if scale < 1:
        size = max(round(gray.shape[1] * scale), 1), max(round(gray.shape[0] * scale), 1)
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return math.log((float(cv2.Laplacian(gray, cv2.CV_32F).var()) + 1e-12) / (float(gray.var()) + 1e-9))
