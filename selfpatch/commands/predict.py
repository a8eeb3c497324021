"""`selfpatch predict`: masks and overlays of images by a head that `evaluate --keep-head` trained."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.run_setup.hardware import find_device
from selfpatch.data.manifest import open_images
from selfpatch.data.reading.decode import UnreadableImage
from selfpatch.data.shown_colors import shown_colors
from selfpatch.errors import working
from selfpatch.evaluation.features import batches, prefetch
from selfpatch.evaluation.segmentation.kept_head import BACKBONE_FILE, SegmentationModel, find_head, read_head
from selfpatch.evaluation.segmentation.prediction_pictures import label_colors
from selfpatch.output.atomic_files import atomic_write, require_writable
from selfpatch.output.printable import as_path_below, printable
from selfpatch.output.progress import track
from selfpatch.output.terminal import say
from selfpatch.output.versions import versions

OPACITY = 0.5  # of the classes' colors over an image


def predict(
    model: Path | str, images: Path | str, out: Path | str, *, overlays: bool = True, device: str = "auto"
) -> int:
    """Write the classes of all images below `images`; returns how many images were segmented.

        OUT/masks/NAME.png     8 bits per pixel, the number of its class from 0, with the classes' colors as palette
        OUT/overlays/NAME.png  the image with the colors half over it
        OUT/classes.json       number, name and color of each class
        OUT/predict.json       which model, which settings
        OUT/unreadable.txt     images that could not be read, with the reason, if there are any

    Args:
        model: the folder of an evaluation with --keep-head, or the folder `model` in it.

    Raises:
        UserError: a model, images or device that are not there or do not fit; `out` cannot be written.
    """
    out = Path(out)
    require_writable(out)
    # 1. Model and images.
    folder, found_device = find_head(Path(model)), find_device(device)
    kept = read_head(folder)
    source = open_images(images)
    backbone = load_backbone(
        folder / BACKBONE_FILE, device=found_device, pos_embed_interpolation=kept.pos_embed_interpolation
    )
    segmenter = SegmentationModel(backbone, folder, found_device)
    source.pixels = backbone.pixels

    def read(index: int) -> Real[np.ndarray, "_h _w _c"] | UnreadableImage:
        try:
            return source.read(index)
        except UnreadableImage as error:
            return error

    # 2. Segment.
    colors, unreadable = label_colors(), []
    with working():
        out.mkdir(parents=True, exist_ok=True)
        read_images = prefetch(read, batches(range(len(source)), 1))
        for index, [image] in enumerate(track(read_images, "segmenting", len(source))):
            name = source.name(index)
            if isinstance(image, UnreadableImage):
                unreadable.append(f"{printable(name, keep='')}\t{' '.join(str(image).split())}")
                continue
            mask, file = segmenter.predict(image), as_path_below(name)
            write_png(out / "masks" / f"{file}.png", with_palette(mask, colors))
            if overlays:
                shown = shown_colors(image, backbone.pixels.shown_channels)
                write_png(out / "overlays" / f"{file}.png", Image.fromarray(overlay(shown, colors[mask])))
        # 3. Lists, and what was done.
        classes = [
            {"label": label, "name": name, "color": colors[label].tolist()}
            for label, name in enumerate(segmenter.class_names)
        ]
        write_json(out / "classes.json", classes)
        write_json(
            out / "predict.json",
            {
                "model": str(model),
                "images": str(images),
                "task": segmenter.task,
                "num_images": len(source) - len(unreadable),
                "versions": versions(),
            },
        )
        if unreadable:
            (out / "unreadable.txt").write_text("".join(f"{line}\n" for line in unreadable), encoding="utf-8")
            say(f"{len(unreadable)} of {len(source)} images cannot be read and are left out: {out / 'unreadable.txt'}")
    for note in source.notes:
        say(note)
    say(f"{len(source) - len(unreadable)} images in {len(classes)} classes: {out / 'masks'}")
    return len(source) - len(unreadable)


def with_palette(mask: UInt8[np.ndarray, "H W"], colors: UInt8[np.ndarray, "256 3"]) -> Image.Image:
    picture = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    picture.putpalette(colors.ravel().tolist())
    return picture


def overlay(image: UInt8[np.ndarray, "H W 3"], colors: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.rint((1 - OPACITY) * image + OPACITY * colors).astype(np.uint8)


def write_png(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def write_json(path: Path, value: object) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
