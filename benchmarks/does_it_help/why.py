"""What does the patch term do? Figures of finished runs, with their teachers and heads.

    python -m benchmarks.does_it_help.why LABELS RUN [RUN ...]

RUN is a folder of `--out/STUDY/runs` that --keep-runs left, named METHOD-SEED; LABELS are labeled images, of which the
validation images are looked at. Into --results come, for each run:

1. loss: of its SelfPatch term, how much a student wins of what can be won, from the best answer that is the same for
   every patch (the entropy of the mean target) down to knowing every target (the mean of their entropies). Students:
   the trained one; one that is the teacher's copy, head and all; the one the run began with; and the trained one when
   it sees its patches in other colors, in gray, or as their mean colors, while the teacher sees them as they are. And
   what knowing a patch's place alone wins, beyond chance (benchmarks/shortcut.py);
2. similarity: mean cosine of patches of one object, of different objects of an image, of one class in different images,
   of different classes in different images;
3. layers: how far each block's weights moved, as a share of their norm at the start, and its patch tokens: 1 less the
   mean cosine of a token before and after the training.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.does_it_help.results import WHY_RESULTS, read_results, write_results
from benchmarks.shortcut import PlaceInformation, load_model, targets_of
from selfpatch.backbones.pretrained import load_vit
from selfpatch.backbones.vit import ViT
from selfpatch.commands.pretrain import build_parts
from selfpatch.config import rows_columns
from selfpatch.config.io import read_yaml
from selfpatch.evaluation.datasets.segmentation import SegmentationData, read_segmentation
from selfpatch.evaluation.features import normalized
from selfpatch.evaluation.segmentation.in_context_segmentation import patch_label_distribution
from selfpatch.output.terminal import say
from selfpatch.pretraining.student_teacher import StudentTeacher

BATCH_SIZE = 50
PURE = 0.9  # of a patch's pixels are of one class, to be counted as that class
LEFT_OUT = "background"  # of the similarities: it is no object

Pixels = UInt8[np.ndarray, "B H W 3"]


def other_colors(pixels: Pixels, side: int) -> Pixels:
    return np.ascontiguousarray(pixels[..., [1, 2, 0]])


def gray(pixels: Pixels, side: int) -> Pixels:
    return np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)


def mean_colors(pixels: Pixels, side: int) -> Pixels:
    """Every patch as one color, that of the mean of its pixels."""
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    mean = pixels.reshape(len(pixels), rows, side, columns, side, 3).mean(axis=(2, 4))
    return mean.repeat(side, axis=1).repeat(side, axis=2).astype(np.uint8)


SEEN: dict[str, Callable[[Pixels, int], Pixels]] = {
    "other colors": other_colors, "gray": gray, "mean colors of patches": mean_colors,
}  # fmt: skip


def squares(data: SegmentationData, size: int) -> tuple[Pixels, Int[np.ndarray, "B H W"]]:
    """The largest square in the middle of every validation image, and its mask."""
    images, masks = [], []
    for item in data.val:
        image, mask = Image.fromarray(data.read_image(item)), Image.fromarray(data.read_mask(item))
        images.append(np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)))
        masks.append(np.asarray(ImageOps.fit(mask, (size, size), Image.Resampling.NEAREST)))
    return np.stack(images), np.stack(masks)


def untrained(run: Path) -> StudentTeacher:
    """Student and teacher as the run began, if it did not begin from weights."""
    config = read_yaml(run / "config.yaml")
    batch_size = config.optim.batch_size
    assert isinstance(batch_size, int)  # derived
    return build_parts(config, 4 * batch_size, torch.device("cpu")).state.student_teacher.eval()


@torch.no_grad()
def loss_shares(run: Path, pixels: Pixels) -> dict[str, float] | None:
    """Shares of what can be won in the SelfPatch term; its teacher sees the crop as it is, also if in training it saw
    a recolored one. None for a run without the term, with means for an aggregator, or targets of another crop."""
    model = load_model(run, torch.device("cpu"))
    if model.student_teacher is None or model.step is None:
        return None
    trained, began, step = model.student_teacher, untrained(run), model.step
    term = trained.named_objectives["selfpatch"]
    if not term.needs.aggregator or term.needs.boxes:
        return None
    side = trained.teacher.backbone.patch_size[0]
    # 1. Students: an encoder and a head each, before the same teacher.
    copied, fresh = copy.deepcopy(term), copy.deepcopy(term)
    copied.branch.head.load_state_dict(term.branch.teacher_head.state_dict())  # type: ignore[union-attr]
    fresh.branch.head.load_state_dict(began.objectives["selfpatch"].branch.head.state_dict())  # type: ignore[union-attr]
    students = {
        "trained": (trained.student, term, None),
        "teacher's copy": (trained.teacher, copied, None),
        "untrained": (began.student, fresh, None),
    } | {name: (trained.student, term, change) for name, change in SEEN.items()}
    # 2. Their losses on the same crops, and the two ends of the scale.
    losses: dict[str, list[float]] = {name: [] for name in students}
    entropies, means, place = [], [], PlaceInformation()
    for start in range(0, len(pixels), BATCH_SIZE):
        batch = pixels[start : start + BATCH_SIZE]
        crops = as_views(batch, trained.teacher.backbone)
        teacher = trained.teacher.encode(crops, None)
        targets = targets_of(trained, teacher.global_crops.tokens, step)
        entropies.append(torch.special.entr(targets).sum(dim=-1).mean().item())
        means.append(targets.mean(dim=(0, 1)))
        place.add(targets)
        for name, (student, objective, change) in students.items():
            seen = batch if change is None else change(batch, side)
            loss, _ = objective(student.encode(as_views(seen, student.backbone), None), teacher, step)
            objective.discard()
            losses[name].append(loss.item())
    highest = torch.special.entr(torch.stack(means).mean(dim=0)).sum().item()
    lowest = float(np.mean(entropies))
    shares = {name: (highest - float(np.mean(values))) / (highest - lowest) for name, values in losses.items()}
    shares["place alone"] = place.shares().share_of_loss_adjusted
    return shares | {"highest": highest, "lowest": lowest}


def as_views(pixels: Pixels, backbone: Any) -> Float[Tensor, "1 B 3 H W"]:
    return normalized(torch.from_numpy(np.ascontiguousarray(pixels)), backbone.mean, backbone.std)[None]


@torch.no_grad()
def patch_tokens(backbone: ViT, pixels: Pixels) -> Iterator[Float[Tensor, "B N D"]]:
    for start in range(0, len(pixels), BATCH_SIZE):
        yield backbone(as_views(pixels[start : start + BATCH_SIZE], backbone)[0]).patch_tokens


def similarities(
    backbone: ViT, pixels: Pixels, masks: Int[np.ndarray, "B H W"], classes: list[str]
) -> dict[str, float]:
    """Mean cosine over all pairs of each kind, out of sums of unit vectors: |sum|^2 = n + sum over pairs."""
    tokens = F.normalize(torch.cat(list(patch_tokens(backbone, pixels))), dim=-1).double()
    members = np.zeros((*tokens.shape[:2], len(classes)))
    for index, mask in enumerate(masks):
        fraction, _ = patch_label_distribution(mask.astype(np.uint8), backbone.patch_size, len(classes))
        members[index] = fraction >= PURE
    if LEFT_OUT in classes:
        members[..., classes.index(LEFT_OUT)] = 0
    return pair_means(tokens, torch.from_numpy(members))


def pair_means(tokens: Float[Tensor, "B N D"], members: Float[Tensor, "B N C"]) -> dict[str, float]:
    """
    Args:
        tokens: unit vectors.
        members: 1 where a patch is of a class, of one at most.
    """
    sums = torch.einsum("bnc,bnd->bcd", members, tokens)  # of an object
    counts = members.sum(dim=1)  # [B, C]

    def pairs(*dims: int) -> tuple[float, float]:
        """Sum of cosines and number of ordered pairs, a patch with itself too, within groups that `dims` join."""
        total = sums.sum(dim=dims) if dims else sums
        number = counts.sum(dim=dims) if dims else counts
        return total.square().sum().item(), number.square().sum().item()

    object_, image, class_, all_ = pairs(), pairs(1), pairs(0), pairs(0, 1)
    number = counts.sum().item()

    def mean(*parts: tuple[int, tuple[float, float]], itself: float = 0.0) -> float:
        cosine = sum(sign * part[0] for sign, part in parts) - itself
        count = sum(sign * part[1] for sign, part in parts) - itself
        return cosine / count if count else float("nan")

    return {
        "one object": mean((1, object_), itself=number),
        "other object, same image": mean((1, image), (-1, object_)),
        "same class, other image": mean((1, class_), (-1, object_)),
        "other class, other image": mean((1, all_), (-1, image), (-1, class_), (1, object_)),
    }


@torch.no_grad()
def layer_changes(start: ViT, end: ViT, pixels: Pixels) -> dict[str, list[float]]:
    """Of every block: relative change of its weights, and of its patch tokens."""
    before, after = start.model.state_dict(), end.model.state_dict()
    depth = len(start.stages)
    weights = []
    for block in range(depth):
        names = [name for name in before if name.startswith(f"blocks.{block}.")]
        moved = sum((after[name] - before[name]).square().sum() for name in names)
        weights.append(float((moved / sum(before[name].square().sum() for name in names)) ** 0.5))  # type: ignore[operator]
    cosines = np.zeros(depth)
    images = as_views(pixels[: 2 * BATCH_SIZE], start)[0]
    for block, (old, new) in enumerate(
        zip(*(backbone.forward_intermediates(images, range(depth)) for backbone in (start, end)), strict=True)
    ):
        cosines[block] = F.cosine_similarity(old, new, dim=1).mean().item()
    return {"weights": weights, "tokens": (1 - cosines).tolist()}


def measure(run: Path, data: SegmentationData, weights: Path | None) -> dict[str, Any]:
    config = read_yaml(run / "config.yaml")
    pixels, _ = squares(data, min(rows_columns(config.crops.global_size)))
    larger, masks = squares(data, 2 * pixels.shape[1])  # as they are scored
    end = load_vit(run / "backbone.safetensors")
    start = load_vit(weights) if weights else untrained(run).teacher.export_backbone()
    assert isinstance(start, ViT)
    return {
        "num_images": len(pixels),
        "loss": None if weights else loss_shares(run, pixels),
        "similarity": similarities(end, larger, masks, data.class_names),
        "similarity_before": similarities(start, larger, masks, data.class_names),
        "layers": layer_changes(start, end, pixels),
    }


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", type=Path, help="labeled images, in any layout that evaluate reads")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--weights", type=Path, help="the model that the runs began with, if not a random one")
    parser.add_argument("--results", type=Path, default=WHY_RESULTS)
    arguments = parser.parse_args(given)
    data = read_segmentation(arguments.labels)
    results = read_results(arguments.results)
    for run in arguments.runs:
        study = results.setdefault(run.parents[1].name, {"budget": {}, "cells": {}})
        study["cells"][run.name] = measure(run, data, arguments.weights)
        say(f"{run.name}: {json.dumps(study['cells'][run.name])}")
        write_results(results, arguments.results)


if __name__ == "__main__":
    main()
