"""Videos that the original program segmented and DAVIS's toolkit scored, done again by our evaluation.

Every video kit that `find_kits` knows of is checked.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.backbones.pretrained import load_vit
from selfpatch.evaluation.datasets.davis import Davis
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.task import EvalContext, EvalOutput
from selfpatch.evaluation.video import video_segmentation
from selfpatch.evaluation.video.davis_measures import global_measures
from selfpatch.evaluation.video.video_segmentation import score_video
from tests.parity.kits import ROOTS, find_kits

KITS = find_kits("expected_masks", "backbone.safetensors", "expected.json", "davis")
# Their settings and ours.
NAMES = {
    "n_last_frames": "num_last_frames",
    "size_mask_neighborhood": "radius",
    "topk": "num_neighbors",
    "temperature": "temperature",
    "mean": "mean",
    "std": "std",
}
# Whether the program propagates norm(x), as DINO's does, or the last block, as SelfPatch's copy does.
FINAL_NORM = {"last block, no final norm, no CLS token": False, "last block, final norm, no CLS token": True}
# What the program always does.
FIXED = {
    "position_embedding_interpolation": "bicubic, scale_factor with +0.1 offset (DINO)",
}


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, scope="module")
def kit(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def expected(kit) -> dict:
    return json.loads((kit / "expected.json").read_text())


@pytest.fixture(scope="module")
def predicted(kit, expected, tmp_path_factory) -> tuple[EvalOutput, Path]:
    """What our evaluation makes of the kit, and the folder of its masks."""
    settings = dict(expected["settings"])
    protocol = VideoSegmentation(
        final_norm=FINAL_NORM[settings.pop("features")],
        **{ours: to_ours(settings.pop(theirs)) for theirs, ours in NAMES.items()},
    )
    backbone = load_vit(
        kit / "backbone.safetensors", num_heads=settings.pop("num_heads"), pos_embed_interpolation="offset"
    )
    patch_size = settings.pop("patch_size")
    assert backbone.patch_size == (patch_size, patch_size)
    assert backbone.embed_dim == settings.pop("embed_dim")
    assert len(backbone.stages) == settings.pop("depth")
    assert settings == FIXED  # a setting that we do not know would pass unnoticed
    out = tmp_path_factory.mktemp(kit.name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    outcome = video_segmentation.run(backbone, kit / "davis", protocol, EvalContext(out))
    torch.set_num_threads(threads)
    return outcome, out / "masks"


def to_ours(value: float | list[float]) -> float | tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else value


def read_mask(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_kits_are_found():
    assert KITS, f"no video kit below {ROOTS}"


def test_masks_from_the_features(kit, predicted):
    """At least 99.9 % of the pixels of all frames after the first, and of every video."""
    for folder in sorted((kit / "expected_masks").iterdir()):
        theirs = sorted(folder.iterdir())
        ours = sorted((predicted[1] / folder.name).iterdir())
        assert [path.name for path in ours] == [path.name for path in theirs]
        equal = [np.mean(read_mask(a) == read_mask(b)) for a, b in zip(ours[1:], theirs[1:], strict=True)]
        assert np.mean(equal) >= 0.999, f"{folder.name}: {equal}"


def test_scores_from_the_features(expected, predicted):
    metrics = predicted[0].metrics
    for ours, theirs in (("J&F-Mean", "JF_mean"), ("J-Mean", "J_mean"), ("F-Mean", "F_mean")):
        assert metrics[ours] == pytest.approx(expected[theirs], abs=1e-3)


def test_scores_of_the_stored_masks(kit, expected):
    """J and F of every object and frame, their means, and the means over all objects."""
    videos = {video.name: video for video in Davis(kit / "davis").videos}
    assert videos.keys() == expected["sequences"].keys()
    of_all = []
    for name, objects in expected["sequences"].items():
        video = videos[name]
        assert [scores["object"] for scores in objects] == list(range(1, video.num_objects + 1))
        masks = [read_mask(kit / "expected_masks" / name / f"{frame.image.stem}.png") for frame in video.frames]
        of_video = score_video(video, masks)
        for scores, (J, F) in zip(objects, of_video, strict=True):
            assert J.tolist() == pytest.approx(scores["J"], abs=1e-9)
            assert F.tolist() == pytest.approx(scores["F"], abs=1e-9)
            assert [J.mean(), F.mean()] == pytest.approx([scores["J_mean"], scores["F_mean"]], abs=1e-9)
        of_all += of_video
    measures = global_measures(of_all)
    for ours, theirs in (("J&F-Mean", "JF_mean"), ("J-Mean", "J_mean"), ("F-Mean", "F_mean")):
        assert measures[ours] == pytest.approx(expected[theirs], abs=1e-9)
