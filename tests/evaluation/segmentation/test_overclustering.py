import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfpatch.evaluation.metrics import IGNORED, segmentation_metrics
from selfpatch.evaluation.protocols.overclustering import Overclustering
from selfpatch.evaluation.segmentation import overclustering
from selfpatch.evaluation.segmentation.overclustering import (
    confusion_by_class,
    count_pairs,
    many_to_one,
    one_to_one,
    principal_components,
    resize_maps,
    run,
)
from selfpatch.evaluation.task import EvalContext
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone, write_ade20k, write_stripes
from tests.reference import plain_overclustering as plain

SMALL = {"image_size": 32, "mask_size": 16, "num_clusters": ("classes", 8), "num_seeds": 2, "batch_size": 2}


def overcluster(root, out, backbone=None, **settings):
    return run(backbone or ColorBackbone(), root, Overclustering(**{**SMALL, **settings}), EvalContext(out))


# 1. Matching


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_a_restatement_with_loops(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 3, IGNORED], (2, 9, 7)).astype(np.uint8)  # of 5 classes two are absent
    clusters = rng.integers(0, 5, truth.shape)
    clusters[rng.random(truth.shape) < 0.5] = 4
    clusters = np.where((truth == 3) & (rng.random(truth.shape) < 0.8), 2, clusters)
    clusters[clusters == 1] = 0  # a cluster without a pixel
    pixels = plain.scored(clusters, truth)

    def score(counts, class_of):
        return segmentation_metrics(confusion_by_class(counts, class_of), [str(c) for c in range(5)])["mIoU"]

    counts = count_pairs(torch.from_numpy(clusters), torch.from_numpy(truth), 5, 5)
    assert counts.tolist() == [[pixels.count((k, c)) for c in range(5)] for k in range(5)]
    best = plain.best_permutation(pixels, 5)
    of_one = one_to_one(counts)
    assert sorted(of_one) == list(range(5))
    iou = plain.mean_iou(pixels, of_one.tolist(), 5)
    assert score(counts, of_one) == pytest.approx(iou, rel=1e-12)
    assert iou == pytest.approx(plain.mean_iou(pixels, best, 5), rel=1e-12)

    clusters = rng.integers(0, 12, truth.shape)
    pixels = plain.scored(clusters, truth)
    counts = count_pairs(torch.from_numpy(clusters), torch.from_numpy(truth), 12, 5)
    of_many = many_to_one(counts)
    assert of_many.tolist() == plain.most_precise(pixels, 12, 5)
    assert score(counts, of_many) == pytest.approx(plain.mean_iou(pixels, of_many.tolist(), 5), rel=1e-12)


def test_maps_are_resized_as_torch_does():
    maps = torch.randint(0, 99, (2, 28, 31), generator=torch.Generator().manual_seed(0))
    for side in (5, 28, 100):
        expected = F.interpolate(maps[:, None].float(), size=(side, side), mode="nearest")[:, 0]
        assert torch.equal(resize_maps(maps, side).float(), expected)


# 2. Components


@pytest.mark.parametrize("at_once", [16, 100])
def test_components_are_those_of_standardised_tokens(at_once, monkeypatch):
    monkeypatch.setattr(overclustering, "PROJECTED_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(70, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 100
    tokens[:, 2] = 5.0
    z = tokens.double().numpy()
    std = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(std > 0, std, 1)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    components = principal_components(tokens, 3, device=torch.device("cpu")).numpy()
    assert components.shape == (70, 3)
    assert np.allclose(np.abs(components), np.abs(u * s)[:, :3], atol=1e-3)
    assert principal_components(tokens, 50, device=torch.device("cpu")).shape == (70, 6)


# 3. The whole


def test_a_backbone_that_sees_the_classes_scores_1_and_a_blind_one_does_not(tmp_path):
    root = write_ade20k(tmp_path / "data", size=(32, 32), cell=(8, 8))
    seeing = overcluster(root, tmp_path)
    assert seeing.metrics == pytest.approx({"mIoU/K=classes": 1, "spread/K=classes": 0, "mIoU/K=8": 1, "spread/K=8": 0})
    assert (
        seeing.details == {"num_patches": 48, "num_components_kept": 3} and seeing.dataset_info["num_val_images"] == 3
    )
    assert overcluster(root, tmp_path, BlindBackbone()).metrics["mIoU/K=8"] < 0.2
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["K_8", "K_classes"]
    assert (tmp_path / "pictures/K_8/predictions_1.png").is_file()


def test_known_clusters_score_what_can_be_said_beforehand(tmp_path):
    """Of 16 rows 8 are class 0 and 2 are class 1, of one color; class 2 has 4 rows of one color and 2 of another.

    K = 3, one to one: the cluster of 10 rows is class 0 (IoU 8/10), that of 4 class 2 (4/6), and that of 2 is left for
    class 1 (0).
    """
    root = write_stripes(tmp_path / "data", [(8, 0, 0), (2, 1, 0), (4, 2, 1), (2, 2, 2)], num_val=2)
    settings = {"image_size": 16, "num_clusters": ("classes",), "num_seeds": 3}
    output = overcluster(root, tmp_path, ColorBackbone((1, 1)), **settings)
    assert output.metrics == pytest.approx({"mIoU/K=classes": (8 / 10 + 4 / 6 + 0) / 3, "spread/K=classes": 0})


def test_many_clusters_to_one_class_score_what_can_be_said_beforehand(tmp_path):
    """As above with a fourth color in class 0: K = 4 is many to one, so both clusters of class 2 are class 2."""
    root = write_stripes(tmp_path / "data", [(5, 0, 0), (2, 1, 0), (3, 0, 3), (4, 2, 1), (2, 2, 2)], num_val=2)
    output = overcluster(root, tmp_path, ColorBackbone((1, 1)), image_size=16, num_clusters=(4,), num_seeds=3)
    # Class 0 is predicted in 5 + 2 + 3 rows and true in 8 of them; class 1 is never predicted; class 2 is found.
    assert output.metrics == pytest.approx({"mIoU/K=4": (8 / 10 + 0 + 1) / 3, "spread/K=4": 0})


class Mixing(ColorBackbone):
    def forward(self, images):
        tokens = super().forward(images + 0.9 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
        return tokens._replace(patch_tokens=torch.cat([tokens.patch_tokens, tokens.patch_tokens.cos()], dim=-1))


def test_follows_from_the_seed_and_neither_batches_nor_the_order_of_k_matter(tmp_path):
    root = write_ade20k(tmp_path / "data", size=(40, 56), cell=(11, 7))
    first = overcluster(root, tmp_path, Mixing(), batch_size=1).metrics
    assert overcluster(root, tmp_path, Mixing(), batch_size=1).metrics == first
    assert overcluster(root, tmp_path, Mixing(), batch_size=1, seed=3).metrics != first
    # A K that is the number of classes is matched as "classes" is.
    again = overcluster(root, tmp_path, Mixing(), batch_size=1, num_clusters=(8, 4)).metrics
    assert (again["mIoU/K=4"], again["mIoU/K=8"]) == (first["mIoU/K=classes"], first["mIoU/K=8"])
    # Two seeds: mean and standard deviation.
    alone = [overcluster(root, tmp_path, Mixing(), batch_size=1, num_seeds=1, seed=i).metrics for i in (0, 1)]
    scores = [metrics["mIoU/K=8"] for metrics in alone]
    assert first["mIoU/K=8"] == pytest.approx(np.mean(scores)) and first["spread/K=8"] == pytest.approx(np.std(scores))
    assert first["spread/K=8"] > 0


def test_progress_goes_to_the_end(tmp_path):
    calls = []
    protocol = Overclustering(**SMALL)
    context = EvalContext(tmp_path / "out", report=lambda *call: calls.append(call))
    run(ColorBackbone(), write_ade20k(tmp_path / "data"), protocol, context)
    assert calls[-6:] == [(done, 15) for done in (2, 3, 6, 9, 12, 15)]  # after those of the check


def test_refuses_more_clusters_than_patches_before_anything_is_written(tmp_path):
    root = write_ade20k(tmp_path / "data")
    with pytest.raises(ValueError, match="3 validation images have 48 patches together, which do not make 49 clusters"):
        overcluster(root, tmp_path / "out", num_clusters=("classes", 49))
    assert not (tmp_path / "out").exists()
