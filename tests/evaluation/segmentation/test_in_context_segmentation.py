from dataclasses import replace

import numpy as np
import pytest
import torch

from selfpatch.evaluation.datasets.segmentation import read_segmentation
from selfpatch.evaluation.features import resize_image, resize_mask
from selfpatch.evaluation.metrics import IGNORED
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.in_context_segmentation import InContextSegmentation
from selfpatch.evaluation.segmentation import in_context_segmentation
from selfpatch.evaluation.segmentation.in_context_segmentation import (
    InContextEvaluator,
    argmax_of_present_classes,
    nearest_labels,
    patch_label_distribution,
    sample_patches,
)
from selfpatch.evaluation.task import EvalContext
from tests.evaluation.labeled_scenes import COLORS, BlindBackbone, ColorBackbone, random_mask, save_pair, write_ade20k
from tests.reference import plain_in_context as plain
from tests.reference import plain_segmentation_metrics as plain_metrics


def evaluator(root, **settings) -> InContextEvaluator:
    protocol = InContextSegmentation(**{"image_size": 32, "memory_size": 10_000, "num_neighbors": 3, **settings})
    return InContextEvaluator(read_segmentation(root), protocol, patch_size=(8, 8))


def write_pair(root, split: str, stripes: list[tuple[int, int, int]]) -> None:
    """One image of stripes of (rows, label, which of COLORS), 16 pixels wide."""
    labels = np.concatenate([np.full((rows, 16), label, np.uint8) for rows, label, _ in stripes])
    colors = np.concatenate([np.full((rows, 16), color, np.uint8) for rows, _, color in stripes])
    save_pair(root / f"images/{split}/0.png", root / f"masks/{split}/0.png", labels, COLORS[colors])


# Patches of one pixel, of which the nearest one decides: scores can be said beforehand.
EXACT = {"image_size": 16, "num_neighbors": 1, "memory_size": 1000}


def exact(root, preset: str, **settings):
    protocol = replace(TASKS["in-context-segmentation"].presets[preset], **EXACT, **settings)
    return InContextEvaluator(read_segmentation(root), protocol, patch_size=(1, 1))(ColorBackbone((1, 1))).metrics


# 0. The program open-hummingbird-eval


def test_the_program_takes_pixels_without_a_class_for_class_0(tmp_path):
    """The third color is void in training: the program predicts background there, in 4 rows that are class 1.

    Of 16 rows 8 are class 0 and 8 class 1; IoU 8/12 and 4/8. The default does not remember such patches: their nearest
    ones are of class 1.
    """
    write_pair(tmp_path, "training", [(6, 0, 0), (6, 1, 2), (4, 255, 1)])
    write_pair(tmp_path, "validation", [(8, 0, 0), (4, 1, 2), (4, 1, 1)])
    metrics = exact(tmp_path, "hummingbird-program")
    assert metrics["mIoU"] == metrics["mIoU-matched"] == pytest.approx((8 / 12 + 4 / 8) / 2)
    assert exact(tmp_path, "hummingbird")["mIoU"] == 1.0


def test_in_ade20k_the_programs_class_0_is_one_of_its_own_and_counts(tmp_path):
    """Label 0 is the third color; it is predicted in 2 scored rows of class 1: IoU 8/8, 4/6, and 0 for label 0."""
    write_pair(tmp_path, "training", [(6, 1, 0), (6, 2, 2), (4, 0, 1)])
    write_pair(tmp_path, "validation", [(8, 1, 0), (4, 2, 2), (2, 2, 1), (2, 0, 1)])
    (tmp_path / "masks").rename(tmp_path / "annotations")
    metrics = exact(tmp_path, "hummingbird-program")
    assert metrics["mIoU"] == pytest.approx((1 + 4 / 6 + 0) / 3)
    assert (metrics["IoU/1"], metrics["IoU/2"], metrics["IoU/label 0"]) == pytest.approx((1, 4 / 6, 0))
    data = read_segmentation(tmp_path)
    protocol = replace(TASKS["in-context-segmentation"].presets["hummingbird-program"], **EXACT)
    output = in_context_segmentation.run(ColorBackbone((1, 1)), tmp_path, protocol, EvalContext(tmp_path / "out"))
    assert output.metrics == metrics and output.dataset_info["num_classes"] == data.num_classes == 2
    assert (tmp_path / "out/pictures/predictions_1.png").is_file()


def test_the_programs_headline_is_the_matched_mean_over_all_classes(tmp_path):
    """The labels of validation are exchanged: 0 directly, 1 when matched; and of three classes one never occurs."""
    write_pair(tmp_path, "training", [(8, 0, 0), (8, 1, 2)])
    write_pair(tmp_path, "validation", [(8, 1, 0), (8, 0, 2)])
    (tmp_path / "classes.txt").write_text("sky\ngrass\nnever\n")
    metrics = exact(tmp_path, "hummingbird-program")
    assert next(iter(metrics)) == "mIoU-matched"
    assert (metrics["mIoU-matched"], metrics["mIoU"]) == (pytest.approx(2 / 3), 0)
    metrics = exact(tmp_path, "hummingbird")
    assert next(iter(metrics)) == "mIoU"
    assert (metrics["mIoU-matched"], metrics["mIoU"]) == (1, 0)


def test_the_program_normalises_by_its_own_numbers_and_scores_at_the_size_of_the_input(tmp_path):
    write_pair(tmp_path, "training", [(8, 0, 0), (8, 1, 2)])
    write_pair(tmp_path, "validation", [(12, 0, 0), (12, 1, 2)])
    seen = []

    class Watching(ColorBackbone):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    protocol = replace(TASKS["in-context-segmentation"].presets["hummingbird-program"], **EXACT)
    scores = InContextEvaluator(read_segmentation(tmp_path), protocol, patch_size=(1, 1))(Watching((1, 1)))
    expected = (COLORS[0] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.255)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert [shown.truth.shape for shown in scores.predictions] == [(16, 16)]
    default = replace(TASKS["in-context-segmentation"].presets["hummingbird"], **EXACT)
    scores = InContextEvaluator(read_segmentation(tmp_path), default, patch_size=(1, 1))(Watching((1, 1)))
    assert seen[-1][0, :, 0, 0].tolist() == pytest.approx((COLORS[0] / 255 * 2 - 1).tolist(), abs=1e-6)
    assert [shown.truth.shape for shown in scores.predictions] == [(24, 16)]


# 1. The whole against a restatement with loops.


class RandomBackbone(ColorBackbone):
    """Tokens that depend on the colours of a patch without giving the class away."""

    def forward(self, images):
        tokens = super().forward(images)
        mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
        return tokens._replace(patch_tokens=(tokens.patch_tokens @ mix + 0.3).sin())


def test_equals_a_restatement_with_loops(tmp_path):
    rng = np.random.default_rng(3)
    for split, count in (("training", 2), ("validation", 2)):
        for i in range(count):
            mask = random_mask(rng, (24, 40), 3, (5, 5))
            pixels = rng.integers(0, 256, (24, 40, 3), np.uint8)
            labels = np.where(rng.random(mask.shape) < 0.1, 0, mask + 1).astype(np.uint8)  # one in ten is not scored
            save_pair(tmp_path / f"images/{split}/{i}.png", tmp_path / f"annotations/{split}/{i}.png", labels, pixels)
    data = read_segmentation(tmp_path)
    backbone = RandomBackbone()
    scores = evaluator(tmp_path, num_neighbors=4, temperature=0.1)(backbone)

    def tokens_of(item):
        pixels = resize_image(data.read_image(item), (32, 32)).astype(np.float64) / 255
        images = torch.tensor((pixels - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
        return backbone.eval()(images).patch_tokens[0].double().numpy()

    keys, key_labels = [], []
    for item in data.train:
        mask = resize_mask(data.read_mask(item), (32, 32))
        for patch, token in enumerate(tokens_of(item)):
            keys.append(token)
            key_labels.append(plain.label_share(mask, patch, 4, 8, 3))
    predictions, truths = [], []
    for item in data.val:
        labels = [plain.patch_labels(token, keys, key_labels, 4, 0.1) for token in tokens_of(item)]
        upsampled = plain.upsample(np.array(labels).reshape(4, 4, 3), 24, 40)
        predictions.append(upsampled.argmax(axis=-1))
        truths.append(data.read_mask(item))
    for shown, prediction in zip(scores.predictions, predictions, strict=True):
        assert shown.prediction.tolist() == prediction.tolist()
    plain_scores = plain_metrics.segmentation_metrics(np.stack(predictions), np.stack(truths), 3)
    expected = {f"IoU/{int(k[4:]) + 1}" if k.startswith("IoU/") else k: v for k, v in plain_scores.items()}
    assert scores.metrics == pytest.approx(expected, rel=1e-12)


# 2. What a backbone is worth.


def test_a_backbone_that_sees_the_classes_scores_1_and_a_blind_one_says_the_commonest(tmp_path):
    # Stripes as wide as a patch: where more than two classes meet, upsampling would round off their corners.
    root = write_ade20k(tmp_path, size=(32, 32), cell=(32, 8))
    evaluate = evaluator(root)
    seeing = evaluate(ColorBackbone())
    assert {name: value for name, value in seeing.metrics.items() if value < 1} == {}
    # All patches are equally near: one answer for all.
    blind = evaluate(BlindBackbone())
    predicted = np.unique(np.concatenate([shown.prediction.ravel() for shown in blind.predictions]))
    assert len(predicted) == 1
    truth = np.concatenate([shown.truth.ravel() for shown in blind.predictions])
    share = (truth == predicted[0]).mean()
    assert blind.metrics["aAcc"] == pytest.approx(share)
    assert blind.metrics["mIoU"] == pytest.approx(share / len(np.unique(truth)))


@pytest.mark.parametrize("resize", ["square", "keep_aspect"])
def test_images_of_many_shapes(tmp_path, resize):
    for i, size in enumerate([(32, 64), (64, 32), (32, 32), (48, 32), (32, 64), (32, 50)]):
        root = write_ade20k(tmp_path / str(i), num_train=2, num_val=1, size=size, cell=(32, 16), seed=i)
        for path in root.rglob("*.png"):
            target = tmp_path / "all" / path.relative_to(root).with_stem(f"{i}-{path.stem}")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    evaluate = evaluator(tmp_path / "all", resize=resize, batch_size=3)
    scores = evaluate(ColorBackbone())
    assert scores.metrics["mIoU"] > 0.7
    for shown in scores.predictions:
        assert shown.prediction.shape == shown.truth.shape == shown.item.size
    assert evaluate(ColorBackbone()).metrics == scores.metrics


def test_neither_batch_size_nor_chunks_nor_the_mode_matter(tmp_path, monkeypatch):
    root = write_ade20k(tmp_path, cell=(5, 5))
    expected = evaluator(root)(ColorBackbone()).metrics
    backbone = ColorBackbone()
    assert evaluator(root, batch_size=2)(backbone).metrics == expected
    assert backbone.training
    monkeypatch.setattr(in_context_segmentation, "MAX_CHUNK", 700)
    assert evaluator(root, batch_size=5)(backbone).metrics == expected


def test_progress_goes_to_the_end(tmp_path):
    calls = []
    evaluator(write_ade20k(tmp_path), batch_size=4)(ColorBackbone(), report=lambda *call: calls.append(call))
    assert calls == [(4, 9), (6, 9), (9, 9)]


def test_refuses_a_memory_that_cannot_answer(tmp_path):
    root = write_ade20k(tmp_path)
    with pytest.raises(ValueError, match="memory-size is 5 for 6 training images, less than a patch an image; make it"):
        evaluator(root, memory_size=5)
    with pytest.raises(ValueError, match="num-neighbors is 7, but the memory holds 6 labelled patches of 6 training"):
        evaluator(root, memory_size=11, num_neighbors=7)


# 3. The memory.


def test_label_shares_leave_out_what_is_not_scored():
    mask = np.array([[0, 0, 1, 1, 255, 255], [2, 0, 255, 1, 255, 255]], np.uint8)
    labels, is_scored = patch_label_distribution(mask, (2, 2), 3)
    assert labels.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0]]
    assert is_scored.tolist() == [True, True, False]


def test_label_shares_of_patches_that_are_not_square():
    mask = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(2, axis=0).repeat(3, axis=1)
    labels, is_scored = patch_label_distribution(mask, (2, 3), 4)
    assert labels.tolist() == np.eye(4).tolist() and is_scored.all()


def draw(num_patches: int, seed: int, labels: np.ndarray, is_scored: np.ndarray) -> list[int]:
    return sample_patches(labels, is_scored, num_patches, np.random.default_rng(seed)).tolist()


def test_rare_classes_come_first_and_nothing_that_is_not_scored():
    # 20 patches of class 0, one of class 1, one of both, three that are not scored.
    labels = np.array([[1, 0]] * 20 + [[0, 1]] + [[0.5, 0.5]] + [[0, 0]] * 3, np.float32)
    is_scored = labels.sum(axis=1) > 0
    draws = [draw(5, seed, labels, is_scored) for seed in range(400)]
    assert all(len(set(patches)) == 5 and max(patches) < 22 for patches in draws)
    counts = np.bincount(np.concatenate(draws), minlength=25) / 400
    # By chance each would be taken 5 / 22 of the time. The patch of both classes counts as common and rare: last.
    assert counts[20] > 0.85
    assert counts[21] < 5 / 22 < 0.25
    assert counts[:20].std() < 0.05
    assert sorted(draw(100, 0, labels, is_scored)) == list(range(22))


def test_the_memory_follows_from_the_seed(tmp_path):
    root = write_ade20k(tmp_path, num_train=4)

    def places(**settings):
        remembered = evaluator(root, memory_size=22, **settings)._remembered.values()
        assert all(len(of_image.patches) == 5 for of_image in remembered)
        return [of_image.patches.tolist() for of_image in remembered]

    assert places() == places(batch_size=1) != places(seed=1)


# 4. Neighbours and upsampling.


def test_nearest_labels_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, memory = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (11, 40))
    memory_labels = torch.rand(40, 3, generator=generator)
    expected = [
        plain.patch_labels(query, memory.double().numpy(), memory_labels.double().numpy(), 7, 0.05)
        for query in queries.double().numpy()
    ]
    labels = nearest_labels(queries, memory, memory_labels, 7, temperature=0.05)
    np.testing.assert_allclose(labels.numpy(), np.stack(expected), atol=1e-5)
    monkeypatch.setattr(in_context_segmentation, "MAX_CHUNK", 200)
    torch.testing.assert_close(nearest_labels(queries, memory, memory_labels, 7, temperature=0.05), labels)


def test_likeliest_classes_with_classes_that_are_absent():
    label_map = torch.zeros(5, 3, 4)
    label_map[1], label_map[4] = torch.rand(3, 4), torch.rand(3, 4)
    expected = plain.upsample(label_map.permute(1, 2, 0).double().numpy(), 13, 9).argmax(axis=-1)
    assert argmax_of_present_classes(label_map, (13, 9)).tolist() == expected.tolist()


def test_ignored_pixels_of_the_validation_do_not_count(tmp_path):
    root = write_ade20k(tmp_path, size=(32, 32), cell=(32, 8))
    data = read_segmentation(root)
    for item in data.val:
        mask = data.read_mask(item) + 1
        mask[:16] = 0
        pixels = data.read_image(item)
        pixels[:8] = 128  # where everything would be wrong
        save_pair(item.image, item.mask, mask, pixels)
    assert all((data.read_mask(item)[:16] == IGNORED).all() for item in data.val)
    assert evaluator(root)(ColorBackbone()).metrics["aAcc"] == 1
