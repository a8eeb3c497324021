"""Folders of a run and a study as their commands leave them, made up in moments: pages to look at and to attack."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from selfpatch.backbones.backbone import Tokens
from selfpatch.commands.report.run_report import DERIVED
from selfpatch.commands.study import ranking
from selfpatch.config.io import write_yaml
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation.overlaps import from_overlaps
from selfpatch.export import export_timm
from selfpatch.visualization.report.earlier_pictures import EarlierPictures
from selfpatch.visualization.report.similarities import SIMILARITIES, write_similarities
from selfpatch.visualization.sheet import EncodedImage
from tests.small_models import tiny_config, tiny_student_teacher

# Names with everything that HTML, JavaScript, CSS, terminals and paths make something of.
EVIL = "</script><img src=x onerror=alert(1)>'\"&<!--\u2028\x1b[2J\u202e"
STEPS = (0, 20, 40, 60)


def picture(hue: int, width: int = 640) -> np.ndarray:
    """Stripes whose color and place tell the step."""
    ramp = np.indices((width // 2, width)).sum(axis=0)
    hsv = np.stack([np.full_like(ramp, hue % 180), 120 + ramp % 100, 120 + (ramp // 8 + hue) % 2 * 100], axis=-1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)


def encoded(name: str, rows: int, columns: int, seed: int = 0) -> EncodedImage:
    """An image of two halves with the tokens of two kinds."""
    rng = np.random.default_rng(seed)
    pixels = np.full((16 * rows, 16 * columns, 3), (70, 110, 160), np.uint8)
    pixels[:, 8 * columns :] = (210, 150, 60)
    is_right = np.arange(rows * columns) % columns >= columns // 2
    tokens = np.where(is_right[:, None], [1.0, 0.2, 0.0], [-0.2, 1.0, 0.3]) + rng.normal(0, 0.2, (rows * columns, 3))
    return EncodedImage(name, pixels, Tokens(None, torch.tensor(tokens, dtype=torch.float32)[None], (rows, columns)))


def metrics(num_steps: int = 60, start: float = 5.4) -> list[dict]:
    lines = []
    for step in range(num_steps + 1):
        if step in STEPS:
            lines.append({"step": step, "in_context/mIoU": 0.3 + step / 600, "in_context/aAcc": 0.65 + step / 900})
        if step > 0:
            loss = start - 2 * (1 - math.exp(-step / 20)) + 0.05 * math.sin(step)
            signals = {"dino/mutual_information": 0.7 - step / 300, "selfpatch/mutual_information": 0.72}
            lines.append(
                {"step": step, "loss": loss, "dino/loss": loss, "selfpatch/loss": loss + 0.4, **signals}
                | {"images_per_second": 812.5, "lr": 1e-3 * step / 60, "patches/similarity": 0.3}
            )  # fmt: skip
    return lines


def made_run(folder: Path, *, name: str = "scene_1.jpg") -> Path:
    """The folder of a finished run, with pictures of four steps and two images to click on."""
    folder.mkdir(parents=True)
    write_yaml(tiny_config(), folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    (folder / "images.json").write_text(json.dumps({"num_images": 1000}))
    reason = f"no GPU, and at least four batches per epoch {name}"
    (folder / DERIVED).write_text(json.dumps({"optim.batch-size": {"value": 4, "reason": reason}}))
    export_timm(tiny_student_teacher(tiny_config()).teacher.export_backbone(), folder / "backbone.safetensors")
    pictures = folder / "pictures"
    pictures.mkdir()
    earlier = EarlierPictures(pictures, first_step=0)
    for step in STEPS:
        for i, kind in enumerate(("pca", "positives", "predictions_1")):
            cv2.imwrite(str(pictures / f"{kind}.png"), picture(60 * i + step))
        earlier.keep(step)
    write_similarities([encoded(name, 8, 12), encoded("other.jpg", 9, 9, seed=1)], pictures / SIMILARITIES)
    return folder


COLUMNS = ["in-context 1", "in-context 1/8", "linear 1"]


def record(iou: float, *, seed: int = 0, num_images: int = 40) -> dict:
    """Scores of images whose IoU is about this one."""
    shared, own = np.random.default_rng(0), np.random.default_rng([seed, int(1000 * iou)])
    union = shared.integers(500, 1000, size=(num_images, 3))
    rates = iou + shared.normal(0, 0.1, union.shape) + own.normal(0, 0.02, union.shape)
    overlaps = np.stack([(union * np.clip(rates, 0, 1)).astype(int), union], axis=1)
    return {"scores": dict.fromkeys(COLUMNS, from_overlaps(overlaps))}


def made_study(folder: Path, *, weights: str = "dinov2_vits14.pth", done: bool = True) -> dict:
    """What study.json holds, and runs with their logs and a page."""
    means = {"as-is": 0.512, "continue-selfpatch": 0.541, "continue-dino": 0.516, "dino-selfpatch-small": 0.455}
    seeds = {name: 1 if name == "as-is" else 3 for name in means}
    cells = []
    for i, (name, count) in enumerate(seeds.items()):
        for seed in range(count):
            scores = dict.fromkeys(COLUMNS, means[name] + 0.004 * seed)
            cell = {"candidate": name, "seed": seed, "state": "done", "scores": scores, "seconds": {"training": 61.0}}
            if name != "as-is":
                run = folder / "runs" / f"{name}-{seed}"
                run.mkdir(parents=True)
                lines = metrics(start=5.4 + 0.2 * i + 0.05 * seed)
                (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                (run / "report.html").write_text("a page")
                cell["training"] = {"steps": 60, "run": f"runs/{name}-{seed}"}
            cells.append(cell)
    describe = {
        name: ranking.describe_candidate(name, weights) for name in means
    }  # fmt: skip
    content = {
        "state": "done" if done else "running",
        "data": {"num_images": 640, "num_left_out": 40, "num_train_images": 60, "num_val_images": 40},
        "plan": {
            "candidates": [{"name": name, "num_seeds": seeds[name], "steps": 60} for name in means], "seconds": 1200.0,
            "budget": {"images_per_step": 64, "crops": "2 of 96 px"},
        },
        "candidates": {name: {"description": describe[name]} for name in means},
        "columns": COLUMNS, "headline": list(ranking.HEADLINE), "reference": "as-is", "cells": cells,
        "progress": {"done": len(cells), "total": len(cells), "seconds_spent": 610.0, "seconds_left": 0.0},
    }  # fmt: skip
    if done:
        records = {
            name: {seed: record(mean, seed=seed) for seed in range(seeds[name])} for name, mean in means.items()
        }  # fmt: skip
        ranked = ranking.rank(records, COLUMNS)
        content |= {
            "ranking": [ranking.as_json(one) for one in ranked],
            "sentences": ranking.sentences(ranked, weights=weights, best_file="best/backbone.safetensors"),
            "interval": ranking.interval_sentence(ranked, 40),
            "best": {
                "candidate": ranking.best_of(ranked).candidate, "seed": 0, "file": "best/backbone.safetensors",
                "load": "timm.create_model('vit_small_patch14_dinov2', checkpoint_path='best/backbone.safetensors')",
            },
        }  # fmt: skip
    return content


def made_result(model: str, miou: float, *, classes: tuple[str, ...] = ("sky", "road", "tree")) -> Result:
    by_class = {f"IoU/{name}": miou + 0.1 * (i - 1) for i, name in enumerate(classes)}
    return Result(
        task="linear-segmentation",
        protocol={"name": "dinov2", "lr": 1e-3, "num_val": 40},
        metrics={"mIoU": miou, "aAcc": miou + 0.2} | by_class,
        model=model,
        data="data/ade20k",
        seconds=83.0,
        versions={"torch": "2.10"},
        notes=["three images have no label"],
    )
