"""What the patch term does: similarities against plain loops, changes of colors, and the ends of the scale of losses."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.does_it_help import why
from selfpatch.commands.pretrain import pretrain
from selfpatch.demo.scenes import write_scenes
from selfpatch.evaluation.datasets.segmentation import read_segmentation
from tests.small_models import tiny_config


def test_similarities_equal_those_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(3, 6, 4, generator=generator), dim=-1).double()
    labels = torch.randint(-1, 3, (3, 6), generator=generator)  # -1: of no class
    members = F.one_hot(labels + 1, 4)[..., 1:].double()
    expected: dict[str, list[float]] = {}
    patches = [(b, n) for b, n in itertools.product(range(3), range(6)) if labels[b, n] >= 0]
    for (b, n), (c, m) in itertools.permutations(patches, 2):
        same_class, same_image = labels[b, n] == labels[c, m], b == c
        names = {
            (True, True): "one object",
            (False, True): "other object, same image",
            (True, False): "same class, other image",
            (False, False): "other class, other image",
        }
        expected.setdefault(names[bool(same_class), same_image], []).append(float(tokens[b, n] @ tokens[c, m]))
    found = why.pair_means(tokens, members)
    assert found == pytest.approx({name: np.mean(values) for name, values in expected.items()})


def test_changes_of_colors_keep_what_they_say():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    assert sorted(why.other_colors(pixels, 8)[0, 0, 0]) == sorted(pixels[0, 0, 0])
    assert np.ptp(why.gray(pixels, 8), axis=-1).max() == 0
    patches = why.mean_colors(pixels, 8)
    assert np.ptp(patches[:, :8, 8:16], axis=(1, 2)).max() == 0
    assert np.abs(patches[0, 0, 8] - pixels[0, :8, 8:16].mean(axis=(0, 1))).max() <= 1


def test_all_figures_of_a_run(tmp_path):
    write_scenes(tmp_path, num_unlabeled=9, num_train=1, num_val=3, size=48, seed=0)
    settings = {"optim.steps": 1, "efficiency.num_workers": 0}
    pretrain(tmp_path / "images", tmp_path / "run", config=tiny_config(), settings=settings)
    figures = why.measure(tmp_path / "run", read_segmentation(tmp_path / "ade20k"), None)
    loss = figures["loss"]
    assert loss["lowest"] < loss["highest"]
    assert loss["place alone"] < 1
    # A warm-up's first step has a learning rate of 0: the student is still as it was drawn, and so is the teacher.
    assert loss["trained"] == pytest.approx(loss["untrained"], abs=1e-6)
    assert loss["trained"] == pytest.approx(loss["teacher's copy"], abs=1e-6)
    assert figures["layers"] == {"weights": [0, 0], "tokens": pytest.approx([0, 0], abs=1e-6)}
    assert figures["similarity"] == pytest.approx(figures["similarity_before"], nan_ok=True)
