import numpy as np
import pytest
import torch

from selfpatch.evaluation.metrics import IGNORED, confusion_matrix, segmentation_metrics
from tests.reference import plain_segmentation_metrics as plain


def random_pair(seed: int, num_classes: int, absent: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = [c for c in range(num_classes) if c not in absent]
    truth = rng.choice([*present, IGNORED], (9, 11)).astype(np.uint8)
    prediction = rng.choice(present, (9, 11))
    return prediction, truth


@pytest.mark.parametrize("absent", [(), (1,), (0, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_counting_pixel_by_pixel(seed, absent):
    prediction, truth = random_pair(seed, 4, absent)
    confusion = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), 4)
    assert confusion.numpy().tolist() == plain.confusion_matrix(prediction, truth, 4).tolist()
    expected = plain.segmentation_metrics(prediction, truth, 4)
    assert segmentation_metrics(confusion, ["0", "1", "2", "3"]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_counts_of_two_images_add_up():
    (p1, t1), (p2, t2) = random_pair(0, 3, ()), random_pair(1, 3, ())
    both = confusion_matrix(torch.tensor(np.stack([p1, p2])), torch.tensor(np.stack([t1, t2])), 3)
    one_by_one = sum(confusion_matrix(torch.tensor(p), torch.tensor(t), 3) for p, t in ((p1, t1), (p2, t2)))
    assert torch.equal(both, one_by_one)


def test_a_class_predicted_but_never_true_lowers_miou_and_not_macc():
    # 3 pixels of class 0, one of them called class 1; class 2 is nowhere.
    confusion = torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 0]])
    metrics = segmentation_metrics(confusion, ["a", "b", "c"])
    assert metrics["mIoU"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["mAcc"] == pytest.approx(2 / 3)
    assert "IoU/b" in metrics and "IoU/c" not in metrics


def test_renamed_classes_match_and_matching_never_lowers():
    renamed = torch.tensor([[0, 5, 0], [0, 0, 7], [9, 0, 0]])
    metrics = segmentation_metrics(renamed, ["a", "b", "c"])
    assert (metrics["mIoU"], metrics["mIoU-matched"]) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        confusion = torch.tensor(rng.integers(0, 4, (4, 4)) * rng.integers(0, 2, (4, 4)) * rng.integers(0, 2, (4, 1)))
        confusion[0, 0] += 1
        metrics = segmentation_metrics(confusion, list("abcd"))
        assert metrics["mIoU"] <= metrics["mIoU-matched"] + 1e-12
        assert metrics["mIoU-matched"] <= 1


def test_refuses_a_split_without_labels():
    truth = torch.full((4, 4), IGNORED, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not one pixel of the validation masks carries a class"):
        segmentation_metrics(confusion_matrix(torch.zeros(4, 4, dtype=torch.long), truth, 2), ["a", "b"])
