import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfpatch.evaluation.video import label_propagation
from selfpatch.evaluation.video.label_propagation import first_labels, labels_to_mask, propagate, propagate_labels
from tests.reference import plain_label_propagation as plain


def random_features(num_frames: int, size: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(size, generator=generator, dtype=torch.float64)
    return [shared + 0.7 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(num_frames)]


def random_labels(num_labels: int, grid_size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    labels = torch.randint(num_labels, grid_size, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(labels, num_labels).permute(2, 0, 1).double()


@pytest.mark.parametrize("grid_size", [(1, 1), (1, 9), (9, 1), (7, 11), (12, 15)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"radius": 0},
        {"radius": 1},
        {"radius": 40},
        {"num_last_frames": 0},
        {"num_last_frames": 1},
        {"num_neighbors": 1},
        {"num_neighbors": 23},
        {"num_neighbors": 10_000},
        {"temperature": 0.02},
    ],
    ids=str,
)
def test_equals_the_dense_form(grid_size, settings):
    settings = {"num_last_frames": 2, "radius": 3, "num_neighbors": 5, "temperature": 0.1} | settings
    features = random_features(5, (6, *grid_size))
    labels = random_labels(3, grid_size)
    expected = plain.propagate(features, labels, **settings)
    propagated = list(propagate(iter(features), labels, **settings))
    assert len(propagated) == len(expected) == 4
    for ours, theirs in zip(propagated, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [{"TILE": (4, 3)}, {"MAX_SIMILARITIES": 2000}, {"MAX_SIMILARITIES": 1}], ids=str)
def test_neither_tiles_nor_chunks_matter(monkeypatch, settings):
    """Down to one query at a time."""
    features = random_features(4, (6, 13, 17))
    labels = random_labels(4, (13, 17))
    arguments = {"num_last_frames": 3, "radius": 4, "num_neighbors": 5, "temperature": 0.1}
    expected = list(propagate(features, labels, **arguments))
    for name, value in settings.items():
        monkeypatch.setattr(label_propagation, name, value)
    for ours, theirs in zip(propagate(features, labels, **arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_patches_as_similar_as_the_last_neighbour_count_too():
    """Patches of flat colour are all alike: then the dense form averages over all, and so must the tiles."""
    flat = [torch.ones(4, 12, 15, dtype=torch.float64) for _ in range(3)]
    labels = random_labels(3, (12, 15))
    arguments = {"num_last_frames": 2, "radius": 2, "num_neighbors": 5, "temperature": 0.1}
    propagated = list(propagate(flat, labels, **arguments))
    for ours, theirs in zip(propagated, plain.propagate(flat, labels, **arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(propagated[0][:, 6, 6], labels[:, 4:9, 4:9].mean(dim=(1, 2)))


def test_labels_follow_a_shift_up_to_the_radius():
    (feature,) = random_features(1, (16, 12, 14))
    labels = random_labels(4, (12, 14))
    for shift in (0, 2, 3):
        moved = feature.roll(shift, dims=2)
        (carried,) = propagate([feature, moved], labels, num_last_frames=7, radius=2, num_neighbors=1, temperature=0.1)
        follows = (carried.argmax(dim=0) == labels.roll(shift, dims=2).argmax(dim=0))[:, shift:].float().mean()
        assert follows == 1 if shift <= 2 else follows < 0.7


def test_labels_are_shares():
    """They sum to 1 and none is negative, for as many as a mask can hold."""
    features = random_features(3, (6, 5, 6))
    labels = random_labels(255, (5, 6))
    for carried in propagate(features, labels, num_last_frames=7, radius=12, num_neighbors=5, temperature=0.1):
        torch.testing.assert_close(carried.sum(dim=0), torch.ones(5, 6, dtype=torch.float64))
        assert carried.min() >= 0


def test_no_gradient_is_kept():
    features = [feature.requires_grad_() for feature in random_features(2, (4, 3, 3))]
    (carried,) = propagate(
        features, random_labels(2, (3, 3)), num_last_frames=1, radius=1, num_neighbors=2, temperature=0.1
    )
    assert not carried.requires_grad


def test_first_labels_are_nearest_pixels():
    annotation = np.zeros((20, 30), np.uint8)
    annotation[:10, 15:] = 2
    labels = first_labels(annotation, (2, 3), 3)
    assert labels.shape == (4, 2, 3)
    assert labels.argmax(dim=0).tolist() == [[0, 2, 2], [0, 0, 0]]
    assert labels.sum(dim=0).tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("num_labels", [1, 2, 5, 40])
def test_label_mask_equals_the_plain_form(patch_size, num_labels, monkeypatch):
    labels = torch.rand(num_labels, 5, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    if num_labels > 2:
        labels[1] = 0  # an object that is gone
    expected = plain.mask(labels.clone(), patch_size)
    assert labels_to_mask(labels, patch_size).tolist() == expected.tolist()
    monkeypatch.setattr(label_propagation, "MAX_LABELS", 2)
    assert labels_to_mask(labels, patch_size).tolist() == expected.tolist()


@pytest.mark.parametrize("max_labels", [1, 16])
def test_a_label_that_is_everywhere_the_same_wins_everywhere(max_labels, monkeypatch):
    monkeypatch.setattr(label_propagation, "MAX_LABELS", max_labels)
    for constant in ({1: 1.0}, {1: 0.5, 2: 0.25}, {0: 1.0}):
        labels = torch.zeros(3, 4, 4)
        for label, value in constant.items():
            labels[label] = value
        if 2 in constant:
            labels[0] = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) / 4
        expected = plain.mask(labels.clone(), (2, 2))
        assert labels_to_mask(labels, (2, 2)).tolist() == expected.tolist() == [[min(constant)] * 8] * 8


def test_carry_labels_takes_the_context_in_any_order():
    queries, *keys = (F.normalize(f, dim=0).permute(1, 2, 0) for f in random_features(5, (6, 6, 7)))
    key_labels = torch.rand(4, 6, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = {"radius": 2, "num_neighbors": 5, "temperature": 0.1}
    expected = propagate_labels(queries, torch.stack(keys), key_labels, **arguments)
    flipped = propagate_labels(queries, torch.stack(keys[::-1]), key_labels.flip(0), **arguments)
    torch.testing.assert_close(flipped, expected)
