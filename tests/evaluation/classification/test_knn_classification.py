import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from selfpatch.evaluation.classification import knn_classification
from selfpatch.evaluation.classification.classification_pictures import Answer, Neighbor, draw_answers, draw_confusion
from selfpatch.evaluation.classification.classification_scores import accuracies, class_confusion, ranks
from selfpatch.evaluation.classification.knn_classification import (
    Nearest,
    class_votes,
    nearest_images,
    run,
    voted_ranks,
)
from selfpatch.evaluation.protocols.knn_classification import KnnClassification
from selfpatch.evaluation.task import EvalContext
from tests.evaluation.labeled_classes import write_classes
from tests.evaluation.labeled_scenes import BlindBackbone, ColorBackbone
from tests.evaluation.without_float64 import WithoutFloat64
from tests.reference import plain_classification as plain


def knn(root, out, backbone=None, report=lambda *_: None, **settings):
    small = {"resize_size": 18, "image_size": 16, "num_neighbors": (1, 3), "batch_size": 4}
    return run(
        backbone or ColorBackbone(), root, KnnClassification(**{**small, **settings}), EvalContext(out, report=report)
    )


# 1. Votes


@pytest.mark.parametrize("chunk", [10, 10_000])
def test_votes_equal_a_restatement_with_loops(chunk, monkeypatch):
    monkeypatch.setattr(knn_classification, "MAX_CHUNK", 30 * chunk)
    rng = np.random.default_rng(0)
    train, val = rng.standard_normal((30, 6)), rng.standard_normal((25, 6))
    train_labels, val_labels = rng.integers(0, 8, 30), rng.integers(0, 9, 25)  # nothing is of class 8
    unit_train, unit_val = (F.normalize(torch.from_numpy(v).float(), dim=-1) for v in (train, val))
    nearest = nearest_images(unit_val, unit_train, 12)
    for k in (1, 3, 12):
        ranked = [plain.ranked_classes(q, train, train_labels.tolist(), k, 9, 0.07) for q in val]
        votes = class_votes(nearest, torch.from_numpy(train_labels), k, 9, temperature=0.07)
        scores = accuracies(voted_ranks(votes, torch.from_numpy(val_labels)), 9)
        assert votes.argmax(dim=1).tolist() == [classes[0] for classes in ranked]
        assert scores == {f"top-{n}": plain.top_share(ranked, val_labels.tolist(), n) for n in (1, 5)}
        assert 0 < scores["top-1"] < scores["top-5"] or k == 1


def test_ranks_of_equal_scores_follow_the_order_of_classes():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-torch.inf] * 4])
    assert [ranks(scores[:1], torch.tensor([c])).item() for c in range(4)] == [3, 0, 1, 2]
    assert ranks(scores, torch.tensor([2, 3])).tolist() == [1, 3]
    assert voted_ranks(scores, torch.tensor([2, 0])).tolist() == [1, 4]  # without a vote: after all


def test_votes_neither_overflow_nor_vanish_at_a_low_temperature():
    nearest = Nearest(torch.tensor([[0.99, 0.95, 0.94, 0.2]]), torch.tensor([[0, 1, 2, 3]]))
    votes = class_votes(nearest, torch.tensor([3, 1, 1, 2]), 4, 5, temperature=0.005)
    assert votes.argmax(dim=1).tolist() == [3]  # exp(0.95 / 0.005) is infinite in float32
    of_class = [voted_ranks(votes, torch.tensor([c])).item() for c in range(5)]
    assert of_class == [5, 1, 2, 0, 5]  # class 2 is among the nearest, although its vote is 0 in float32


def test_accuracies_need_no_float64():
    counts = torch.tensor([0, 4, 5]).as_subclass(WithoutFloat64)
    assert accuracies(counts, 6) == {"top-1": 1 / 3, "top-5": 2 / 3}


def test_five_classes_or_less_have_no_top_5():
    assert accuracies(torch.tensor([0, 4, 5]), 5, "/k=3") == {"top-1/k=3": pytest.approx(1 / 3)}
    assert accuracies(torch.tensor([0, 4, 5]), 6) == pytest.approx({"top-1": 1 / 3, "top-5": 2 / 3})


def test_confusion_counts_images():
    predicted, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    assert class_confusion(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


# 2. The whole


def test_a_backbone_that_sees_the_classes_scores_1_and_a_blind_one_does_not(tmp_path):
    root = write_classes(tmp_path / "data")
    calls = []
    outcome = knn(root, tmp_path, report=lambda *call: calls.append(call))
    assert list(outcome.metrics) == ["top-1", "top-5", "top-1/k=1", "top-5/k=1", "top-1/k=3", "top-5/k=3"]
    assert set(outcome.metrics.values()) == {1.0}
    assert outcome.details["vector_scored"] == "mean" and outcome.details["best_num_neighbours"] == 1
    assert calls[-1] == (35, 35)
    for name in ("confusion_matrix", "nearest_images"):
        with Image.open(tmp_path / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert knn(root, tmp_path, BlindBackbone()).metrics["top-1"] == pytest.approx(1 / 7)
    assert knn(root, tmp_path, batch_size=9).metrics == outcome.metrics


def test_a_k_above_the_number_of_training_images_is_left_out(tmp_path):
    root = write_classes(tmp_path / "data", num_classes=2)
    outcome = knn(root, tmp_path, num_neighbors=(20, 5, 6, 7))
    assert list(outcome.metrics) == ["top-1", "top-1/k=5", "top-1/k=6"]
    assert outcome.dataset_info["notes"] == ["k = 20, 7 left out: there are 6 training images"]
    with pytest.raises(
        ValueError, match=r"num-neighbors is \(7, 8\), all more than the 6 training images; give a smal"
    ):
        knn(root, tmp_path / "out", num_neighbors=(7, 8))
    assert not (tmp_path / "out").exists()


def test_refuses_a_class_token_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="vector is class_token, but this model has no class token"):
        knn(write_classes(tmp_path / "data", num_classes=2), tmp_path / "out", vector="class_token")
    assert not (tmp_path / "out").exists()


# 3. Pictures


def test_pictures_of_many_classes_with_strange_names(tmp_path):
    names = [f"$\\bad_{i}$ " + "long " * 9 for i in range(70)]
    draw_confusion(np.eye(70, dtype=np.int64), names, tmp_path / "a/matrix.png")
    draw_confusion(np.zeros((3, 3), np.int64), names[:3], tmp_path / "a/small.png")
    pixels = np.zeros((8, 8, 3), np.uint8)
    draw_answers(
        [Answer(pixels, names[0], names[1], [Neighbor(pixels, names[0], 0.5)]), Answer(pixels, "a", "a", [])],
        tmp_path / "b/answers.png",
    )
    assert len(list(tmp_path.rglob("*.png"))) == 3
