import numpy as np
import pytest
import torch

from selfpatch.evaluation.segmentation import k_means as module
from selfpatch.evaluation.segmentation.k_means import iterate, k_means, means, nearest_center
from tests.evaluation.without_float64 import WithoutFloat64
from tests.reference import plain_overclustering as plain


def random_points(count: int = 200, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def fit(points: torch.Tensor, num_clusters: int, **settings) -> torch.Tensor:
    return k_means(
        points, num_clusters, **{"num_restarts": 3, "num_iterations": 50, "max_points": 10_000, "seed": 0, **settings}
    )


def inertia(points: torch.Tensor, centers: torch.Tensor) -> float:
    return float(torch.cdist(points.double(), centers.double()).amin(dim=1).square().sum())


def test_iterations_equal_a_restatement_with_loops():
    points = random_points()
    expected = points[:7].double().numpy()
    for count in range(1, 6):
        centers, distance_sum = iterate(points, points[:7], count)
        expected, labels = plain.k_means_iteration(points.double().numpy(), expected)
        assert np.allclose(centers, expected, atol=1e-5)
    assert distance_sum == pytest.approx(inertia(points, centers), rel=1e-5)
    assert len(set(labels)) == 7


def test_needs_no_float64_on_the_device():
    points = random_points()
    elsewhere = points.as_subclass(WithoutFloat64)
    assert iterate(elsewhere, elsewhere[:7], 3)[1] == iterate(points, points[:7], 3)[1]


def test_finds_groups_that_are_apart():
    groups = 20 * torch.eye(6)
    points = (groups[:, None] + 0.1 * random_points(6 * 30, 6).unflatten(0, (6, 30))).flatten(0, 1)
    centers = fit(points, 6, num_restarts=20)
    labels, _ = nearest_center(points, centers)
    assert (labels.unflatten(0, (6, 30)) == labels[::30, None]).all()
    assert len(labels.unique()) == 6


def test_the_same_for_the_same_seed_and_better_for_more_starts():
    points = random_points(500)
    assert torch.equal(fit(points, 20), fit(points, 20))
    assert not torch.equal(fit(points, 20), fit(points, 20, seed=1))
    assert inertia(points, fit(points, 20, num_restarts=10)) < inertia(points, fit(points, 20, num_restarts=1))


def test_looks_at_few_points_only():
    points = random_points(1000)
    points[::2] += 100
    few = fit(points, 2, max_points=2)
    assert all((points == center).all(dim=1).any() for center in few)


def test_chunks_do_not_matter(monkeypatch):
    points = random_points()
    whole = nearest_center(points, points[:9])
    monkeypatch.setattr(module, "MAX_CHUNK", 100)
    chunked = nearest_center(points, points[:9])
    assert torch.equal(whole[0], chunked[0]) and torch.allclose(whole[1], chunked[1], atol=1e-5)


def test_an_empty_cluster_begins_anew_at_the_farthest_point():
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    labels, distance = nearest_center(points, torch.tensor([[1.0], [50.0], [60.0]]))
    assert labels.tolist() == [0, 0, 0, 0] and distance.tolist() == [1, 0, 1, 64]
    assert means(points, labels, distance, 3)[:2].tolist() == [[3.0], [9.0]]
    # Points that are all the same leave clusters empty however often they begin anew.
    assert fit(torch.ones(30, 2), 3).tolist() == [[1, 1]] * 3


def test_sums_on_a_gpu_are_those_of_the_cpu(monkeypatch):
    points = random_points()
    labels = torch.arange(200) % 9
    on_cpu = module.sums_by_label(points, labels, 9)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    monkeypatch.setattr(module, "MAX_CHUNK", 100)
    elsewhere = module.sums_by_label(points.as_subclass(Elsewhere), labels, 9)
    assert torch.allclose(on_cpu, elsewhere.as_subclass(torch.Tensor), atol=1e-5)


def test_refuses_fewer_points_than_clusters():
    with pytest.raises(ValueError, match="4 points do not make 5 clusters"):
        fit(random_points(4), 5)
