"""Made-up videos in DAVIS-2017's layout: coloured disks and boxes that move before a grey pattern."""

from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.backbones.backbone import Stage
from selfpatch.evaluation.video.video_pictures import PALETTE
from tests.evaluation.labeled_scenes import COLORS, ColorBackbone


class ColorStages(ColorBackbone):
    """Its one stage is the mean colour of every patch."""

    def __init__(self, patch_size: tuple[int, int] = (8, 8)):
        super().__init__(patch_size)
        self.stages = [Stage(self.embed_dim, patch_size)]

    def forward_intermediates(self, images, indices):
        tokens = self(images)
        return [tokens.patch_tokens.transpose(1, 2).unflatten(2, tokens.grid_size) for _ in indices]

    def last_attention_keys(self, images):
        raise NotImplementedError


def moving_shapes(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int], num_objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, H, W, 3] and their labels [T, H, W]; the first object is a disk, the next a box, and so on."""
    rows, columns = size
    y, x = np.mgrid[:rows, :columns]
    radius = min(size) / 5
    start = rng.uniform(0.3, 0.7, (num_objects, 2)) * size
    velocity = rng.uniform(-1, 1, (num_objects, 2)) * radius / 3
    background = 90 + rng.integers(0, 20, (rows, columns, 1), np.uint8).repeat(3, axis=-1)
    frames, labels = np.stack([background] * num_frames), np.zeros((num_frames, rows, columns), np.uint8)
    for t in range(num_frames):
        for i in range(num_objects):
            from_middle = np.abs(np.stack([y, x]) - (start[i] + t * velocity[i])[:, None, None])
            distance = np.hypot(*from_middle) if i % 2 == 0 else from_middle.max(axis=0)
            inside = distance < radius
            frames[t][inside], labels[t][inside] = COLORS[i % len(COLORS)], i + 1
    return frames, labels


def save_annotation(path: Path, labels: np.ndarray) -> None:
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes())
    image.save(path)


def write_davis(
    root: Path,
    *,
    videos: tuple[str, ...] = ("ball", "box"),
    num_frames: int = 5,
    size: tuple[int, int] = (48, 80),
    num_objects: int = 2,
    seed: int = 0,
) -> Path:
    rng = np.random.default_rng(seed)
    for name in videos:
        images, annotations = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        for folder in (images, annotations):
            folder.mkdir(parents=True, exist_ok=True)
        for t, (frame, labels) in enumerate(zip(*moving_shapes(rng, num_frames, size, num_objects), strict=True)):
            Image.fromarray(frame).save(images / f"{t:05d}.jpg", quality=95)
            save_annotation(annotations / f"{t:05d}.png", labels)
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(videos) + "\n")
    return root
