"""Regimes: where a method is tried. Each has images, labeled images, a DINO run, and sizes at which it is scored."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from selfpatch.config import PretrainConfig
from selfpatch.config.io import override
from selfpatch.data.image_folder import ImageFolder
from selfpatch.demo.scenes import write_scenes
from selfpatch.errors import UserError
from selfpatch.recipes import find_recipe

REGIMES = ("scenes", "continued", "scratch")
SPLITS = ("choose", "report")  # settings are chosen on one, and reported on the other, which was never looked at
SCENES_SEED = {"choose": 0, "report": 1000}  # scenes of one are none of the other's
SCENE_SIZE = 128

RECIPES = {"scenes": "demo", "continued": "continue-dino", "scratch": "dino-small"}
# Settings beside those of the recipe: lengths that two cores can do often enough for several seeds.
SETTINGS: dict[str, dict[str, Any]] = {
    "scenes": {"optim.steps": 300, "optim.batch_size": 64},  # the demo's run has 500 steps
    "continued": {
        "crops.global_size": 84, "crops.local_size": 42, "crops.num_local": 2, "optim.batch_size": 32,
        "optim.steps": 60,
    },
    "scratch": {
        "backbone.name": "vit_tiny_patch16_224", "backbone.patch_size": 8, "crops.global_size": 96,
        "crops.local_size": 40, "optim.batch_size": 64, "optim.steps": 600,
    },
}  # fmt: skip


class Sizes(NamedTuple):
    """Sizes and lengths at which a backbone is scored."""

    image_size: int  # short side of labeled images, in pixels
    linear_steps: int
    knn_images: int  # at most, of each split


SIZES = {"scenes": Sizes(96, 300, 500), "continued": Sizes(112, 100, 300), "scratch": Sizes(128, 300, 500)}


class Regime(NamedTuple):
    """A regime with its data.

    Args:
        base: the DINO run.
        weights: a model to continue; None: from scratch.
        epochs: length of the run.
    """

    name: str
    split: str
    base: PretrainConfig
    images: Path
    labels: Path
    weights: Path | None
    num_images: int
    epochs: float
    sizes: Sizes


def make_regime(
    name: str, split: str, out: Path, *, images: Path | None, labels: Path | None, weights: Path | None,
    num_scenes: tuple[int, int, int], settings: dict[str, Any],
) -> Regime:  # fmt: skip
    """The regime, with scenes written to OUT if it has its own.

    Args:
        num_scenes: of scenes: unlabeled, labeled for training, labeled for validation.
        settings: changes to every run of the regime, by dotted name.

    Raises:
        UserError: images, labels or weights that the regime needs, or does not take.
    """
    images, labels = find_data(name, split, out, images=images, labels=labels, weights=weights, num_scenes=num_scenes)
    base = find_recipe(RECIPES[name])
    base = replace(base, objectives=replace(base.objectives, selfpatch=None))
    base = override(base, SETTINGS[name] | settings)
    num_images = len(ImageFolder(images))
    assert isinstance(base.optim.batch_size, int) and base.optim.steps is not None
    epochs = base.optim.steps / max(num_images // base.optim.batch_size, 1)
    return Regime(name, split, base, images, labels, weights, num_images, epochs, SIZES[name])


def find_data(
    name: str, split: str, out: Path, *, images: Path | None, labels: Path | None, weights: Path | None,
    num_scenes: tuple[int, int, int],
) -> tuple[Path, Path]:  # fmt: skip
    if (weights is not None) != (name == "continued"):
        raise UserError(
            f"--weights is {weights} with --regime {name}: continued needs a model to go on from, the others take none"
        )
    if name == "scenes":
        if images or labels:
            raise UserError("--regime scenes makes its own images; leave out --images and --labels, or take scratch")
        return make_scenes(out / "data" / f"scenes-{split}", split, num_scenes)
    if images is None or labels is None:
        raise UserError(
            f"--regime {name} needs --images, a folder of unlabeled images, and --labels, images with masks"
        )
    return images, labels


def make_scenes(folder: Path, split: str, num_scenes: tuple[int, int, int]) -> tuple[Path, Path]:
    if not (folder / "ade20k" / "classes.txt").exists():  # written last
        num_unlabeled, num_train, num_val = num_scenes
        write_scenes(
            folder, num_unlabeled=num_unlabeled, num_train=num_train, num_val=num_val, size=SCENE_SIZE,
            seed=SCENES_SEED[split],
        )  # fmt: skip
    return folder / "images", folder / "ade20k"
