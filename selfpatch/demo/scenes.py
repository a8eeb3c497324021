"""Made-up, photograph-like scenes with exact masks, for the demo and the tests: any number, any size, no download.

A class is a texture on an outline: striped bars, dotted disks, brick walls. Everything else is drawn anew for each
instance: both colours, their contrast and its sign, light, scale, orientation, phase. So colour says nothing about the
class, and what a pixel belongs to shows only in the pattern around it.

Coordinates are in units of the short side with the origin in the middle: a key gives the same scene at every size.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from selfpatch.errors import UserError

Field = Float32[np.ndarray, "H W"]

BACKGROUND = "background"
WAVELENGTHS = (0.065, 0.12)  # of a texture, in short sides: 8 to 15 px of 128, still 4 px in a 64-px view of it all
RADII = (0.19, 0.34)  # of a disk with the object's area, in short sides
NUM_OBJECTS = (2, 5)
ASPECTS = (1, 5 / 4, 4 / 3, 3 / 2)
JPEG_QUALITY = 92
SMALLEST_SIDE = 32  # below it the textures are finer than the pixels


def write_scenes(
    out: Path, *, num_unlabeled: int, num_train: int, num_val: int, size: int | tuple[int, int], seed: int
) -> None:
    """Writes scenes to pretrain on, and others with masks to evaluate on, in ADE20K's layout.

        OUT/images/scene_00000.jpg ...                                     unlabeled
        OUT/ade20k/images/{training,validation}/scene_00000.jpg ...
        OUT/ade20k/annotations/{training,validation}/scene_00000.png ...   1..C, in the order of classes.txt
        OUT/ade20k/classes.txt                                             one name per line; written last

    Each scene depends on (seed, split, index) alone, so asking for more only adds files. Files there are overwritten.

    Args:
        size: (rows, columns), or the short side of scenes whose aspect ratios vary as those of photographs do.

    Raises:
        UserError: a negative number, or a side below 32 pixels.
    """
    ade20k = out / "ade20k"
    splits = (
        ("unlabeled", num_unlabeled, out / "images", None),
        ("training", num_train, ade20k / "images" / "training", ade20k / "annotations" / "training"),
        ("validation", num_val, ade20k / "images" / "validation", ade20k / "annotations" / "validation"),
    )
    for name, num_scenes, _, _ in splits:
        if num_scenes < 0:
            raise UserError(f"the number of {name} scenes is {num_scenes}; give 0 or more")

    for split, (_, num_scenes, images, annotations) in enumerate(splits):
        images.mkdir(parents=True, exist_ok=True)
        if annotations:
            annotations.mkdir(parents=True, exist_ok=True)
        for index in range(num_scenes):
            image, labels = scene((seed, split, index), size)
            Image.fromarray(image).save(images / f"scene_{index:05d}.jpg", quality=JPEG_QUALITY)
            if annotations:
                Image.fromarray(labels).save(annotations / f"scene_{index:05d}.png")
    (ade20k / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def scene(
    key: Sequence[int], size: int | tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """One scene and its labels, 1..C in the order of CLASSES; both are pure functions of the arguments.

    A label is that of the topmost object whose outline holds the pixel's centre; no pixel is left out as "other" (0).

    Args:
        key: non-negative integers that name the scene.
        size: (rows, columns), or the short side; then the key also decides the aspect ratio.

    Raises:
        UserError: a side below 32 pixels.
    """
    rng = np.random.default_rng(key)
    rows, columns = _draw_size(rng, size) if isinstance(size, int) else size
    short_side = min(rows, columns)
    if short_side < SMALLEST_SIDE:
        raise UserError(
            f"scenes of {rows} x {columns} pixels are too small to show a texture; ask for {SMALLEST_SIDE} or more"
        )

    # 1. Background
    y, x = np.meshgrid(_pixel_centers(rows, short_side), _pixel_centers(columns, short_side), indexing="ij")
    image = _mix(*_sample_colors(rng), 0.5 + 0.35 * _random_waves(rng, x, y, wavelengths=(0.7, 2.5), num_waves=5))
    labels = np.full((rows, columns), 1 + CLASSES.index(BACKGROUND), np.uint8)

    # 2. Objects, the farthest first; no class comes twice
    num_objects = int(rng.integers(*NUM_OBJECTS, endpoint=True))
    centers = _draw_centers(rng, num_objects, extent=np.array([columns, rows]) / short_side)
    for name, center in zip(rng.permutation(list(KINDS))[:num_objects], centers, strict=True):
        _paint(image, labels, x, y, str(name), center, rng)

    # 3. Light and camera
    image *= _draw_light(rng, x, y, strength=(0.0, 0.45)) * rng.uniform(0.8, 1.15)
    image = cv2.GaussianBlur(image, (0, 0), sigmaX=short_side / 128 * rng.uniform(0.3, 0.8))
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.004, 0.02)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8), labels


def _paint(
    image: Float32[np.ndarray, "H W 3"],
    labels: UInt8[np.ndarray, "H W"],
    x: Field,
    y: Field,
    name: str,
    center: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Puts one object of the named class, with its shadow, over image and labels in place."""
    kind = KINDS[name]
    short_side = min(labels.shape)
    radius = rng.uniform(*RADII)
    wavelength = math.exp(rng.uniform(*np.log(WAVELENGTHS)))

    # 1. From here on only the pixels that the object and its shadow can reach, in radii from its centre.
    left, right = np.searchsorted(x[0], (center[0] - 1.75 * radius, center[0] + 1.75 * radius))
    top, bottom = np.searchsorted(y[:, 0], (center[1] - 1.75 * radius, center[1] + 1.75 * radius))
    box = slice(top, bottom), slice(left, right)
    image, labels, x, y = image[box], labels[box], (x[box] - center[0]) / radius, (y[box] - center[1]) / radius

    # 2. Outline and shadow
    u, v = _turn(x, y, _draw_direction(rng))
    phases = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    shadow_u, shadow_v = 0.08 * _draw_direction(rng)
    distance = kind.outline(u, v, phases)
    shadow = _smooth_step(0.5 - kind.outline(u - shadow_u, v - shadow_v, phases) / 0.3)
    image *= 1 - 0.45 * shadow[..., None]

    # 3. Texture in two colours, with edges one pixel wide, in a light of its own
    s, t = _turn(x * (radius / wavelength), y * (radius / wavelength), _draw_direction(rng))
    pattern = kind.texture(s + rng.uniform(0, 10), t + rng.uniform(0, 10), rng)
    paint = _mix(*_sample_colors(rng), 0.5 + pattern * (wavelength * short_side))
    paint *= _draw_light(rng, x, y, strength=(0.05, 0.25))

    # 4. A pixel on the outline is half covered, so the pixels mostly covered are those with the label.
    coverage = (0.5 - distance * (radius * short_side)).clip(0, 1)
    image += coverage[..., None] * (paint - image)
    labels[distance < 0] = 1 + CLASSES.index(name)


# Outlines: signed distance, negative inside, to an outline with about the area of the unit disk. `phases` are three
# random angles, which give a blob its form; the others have one form only.


def _disk(x: Field, y: Field, phases: np.ndarray) -> Field:
    return np.hypot(x, y) - 1


def _square(x: Field, y: Field, phases: np.ndarray) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.89


def _rectangle(x: Field, y: Field, phases: np.ndarray) -> Field:
    return np.maximum(np.abs(x) - 1.2, np.abs(y) - 0.65)


def _capsule(x: Field, y: Field, phases: np.ndarray) -> Field:
    return np.hypot(np.maximum(np.abs(x) - 0.75, 0), y) - 0.62


def _star(x: Field, y: Field, phases: np.ndarray) -> Field:
    """Five points; every edge runs from a tip at radius 1.5 to a notch at radius 0.8."""
    radius = np.hypot(x, y)
    angle = np.abs(np.mod(np.arctan2(y, x), 0.4 * math.pi) - 0.2 * math.pi)  # from the nearest tip
    edge_x, edge_y = 0.8 * math.cos(0.2 * math.pi) - 1.5, 0.8 * math.sin(0.2 * math.pi)
    return (edge_y * (radius * np.cos(angle) - 1.5) - edge_x * radius * np.sin(angle)) / math.hypot(edge_x, edge_y)


def _blob(x: Field, y: Field, phases: np.ndarray) -> Field:
    angle = np.arctan2(y, x)
    return np.hypot(x, y) - 1 - 0.13 * sum(np.cos(lobes * angle + phases[lobes - 2]) for lobes in (2, 3, 4))


# Textures: signed distance to the edge between the two colours, in wavelengths.


def _stripes(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return 0.25 - _to_middle(x)


def _zigzag(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Stripes that turn by a right angle every 1.3 wavelengths."""
    return 0.25 - _to_middle(x / 1.3 + 4 * np.abs(0.25 - _to_middle(y / 5.2)))


def _checkerboard(x: Field, y: Field, rng: np.random.Generator) -> Field:
    across, down = 0.25 - _to_middle(x / 1.3), 0.25 - _to_middle(y / 1.3)
    return 1.3 * np.sign(across * down) * np.minimum(np.abs(across), np.abs(down))


def _dots(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return 0.3 - np.hypot(_to_middle(x + 0.5 * np.floor(y)), _to_middle(y))


def _bricks(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Bricks 1.5 by 0.55 with joints of 0.2, each course half a brick further."""
    course = np.floor(y / 0.75)
    return np.minimum(0.75 - 1.7 * _to_middle(x / 1.7 + 0.5 * course), 0.275 - 0.75 * _to_middle(y / 0.75))


def _coral(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """A fine labyrinth: the sign of waves of nearly one length from all directions."""
    return _random_waves(rng, x, y, wavelengths=(0.6, 0.7), num_waves=12) / 6


def _to_middle(x: Field) -> Field:
    """Distance to the middle of the unit cell that x lies in, 0 to 0.5."""
    return np.abs(x - np.floor(x) - 0.5)


class Kind(NamedTuple):
    outline: Callable[[Field, Field, np.ndarray], Field]
    texture: Callable[[Field, Field, np.random.Generator], Field]


KINDS = {
    "stripes": Kind(_capsule, _stripes),
    "checkerboard": Kind(_square, _checkerboard),
    "dots": Kind(_disk, _dots),
    "bricks": Kind(_rectangle, _bricks),
    "coral": Kind(_blob, _coral),
    "zigzag": Kind(_star, _zigzag),
}
CLASSES = (BACKGROUND, *KINDS)


# What is drawn at random


def _draw_size(rng: np.random.Generator, short_side: int) -> tuple[int, int]:
    long_side = round(short_side * rng.choice(ASPECTS))
    return (short_side, long_side) if rng.random() < 0.7 else (long_side, short_side)


def _draw_centers(rng: np.random.Generator, num_objects: int, extent: np.ndarray) -> Float32[np.ndarray, "N 2"]:
    """Each is the one of eight that is farthest from those before, so that few objects are hidden."""
    centers = rng.uniform(-0.38, 0.38, (1, 2)) * extent
    while len(centers) < num_objects:
        candidates = rng.uniform(-0.42, 0.42, (8, 2)) * extent
        to_nearest = np.linalg.norm(candidates[:, None] - centers, axis=-1).min(axis=1)
        centers = np.vstack([centers, candidates[to_nearest.argmax()]])
    return centers.astype(np.float32)


def _sample_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours of any hue that differ visibly in lightness, either one the lighter."""
    lightness = rng.uniform(45, 65) + rng.choice([-0.5, 0.5]) * rng.uniform(25, 60) * np.array([1, -1])
    hue, chroma = rng.uniform(0, 2 * np.pi, 2), rng.uniform(10, 55, 2)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    first, second = cv2.cvtColor(lab[None].astype(np.float32), cv2.COLOR_LAB2RGB)[0]
    return first, second


def _draw_direction(rng: np.random.Generator) -> Float32[np.ndarray, "2"]:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def _draw_light(
    rng: np.random.Generator, x: Field, y: Field, *, strength: tuple[float, float]
) -> Float32[np.ndarray, "H W 1"]:
    """A brightness that rises evenly in some direction."""
    towards_x, towards_y = _draw_direction(rng) * rng.uniform(*strength)
    return (1 + towards_x * x + towards_y * y)[..., None]


def _random_waves(
    rng: np.random.Generator, x: Field, y: Field, *, wavelengths: tuple[float, float], num_waves: int
) -> Field:
    """A smooth random field of variance 1: plane waves, one from each sector of the half circle."""
    field = np.zeros_like(x)
    for angle in (np.arange(num_waves) + rng.random(num_waves)) * np.pi / num_waves:
        frequency = 2 * math.pi / rng.uniform(*wavelengths)
        along = x * math.cos(angle) + y * math.sin(angle)
        field += np.cos(frequency * along + rng.uniform(0, 2 * math.pi))
    return field * math.sqrt(2 / num_waves)


# Geometry and blending


def _pixel_centers(length: int, short_side: int) -> Float32[np.ndarray, " length"]:
    return ((np.arange(length) + 0.5 - length / 2) / short_side).astype(np.float32)


def _turn(x: Field, y: Field, direction: Float32[np.ndarray, "2"]) -> tuple[Field, Field]:
    cosine, sine = direction
    return cosine * x + sine * y, cosine * y - sine * x


def _smooth_step(x: Field) -> Field:
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)


def _mix(first: np.ndarray, second: np.ndarray, amount: Field) -> Float32[np.ndarray, "H W 3"]:
    return second + amount.clip(0, 1)[..., None] * (first - second)
