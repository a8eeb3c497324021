"""The answer in words follows from the intervals; the plan from the hours."""

import numpy as np
import pytest

from selfpatch.commands.study.plan import MIN_STEPS, PlannedCandidate, Timing, choose_steps, total_seconds
from selfpatch.commands.study.ranking import best_of, interval_sentence, rank, ranking_table, sentences
from selfpatch.errors import UserError
from selfpatch.evaluation.segmentation.overlaps import from_overlaps

COLUMNS = ["in-context 1", "in-context 1/8", "linear 1"]


def record(iou: float, *, seed: int = 0, num_images: int = 40, noise: float = 0.01) -> dict:
    """Scores of images whose IoU is about this one, alike for all candidates but for some noise."""
    shared, own = np.random.default_rng(0), np.random.default_rng([seed, int(1000 * iou)])
    union = shared.integers(500, 1000, size=(num_images, 3))
    rates = iou + shared.normal(0, 0.1, union.shape) + own.normal(0, noise, union.shape)
    overlaps = np.stack([(union * np.clip(rates, 0, 1)).astype(int), union], axis=1)
    return {"scores": dict.fromkeys(COLUMNS, from_overlaps(overlaps))}


def records(seeds: int = 3, **iou: float) -> dict:
    return {
        name: {seed: record(value, seed=seed) for seed in range(1 if name == "as-is" else seeds)}
        for name, value in ((key.replace("_", "-"), value) for key, value in iou.items())
    }


def said(found: dict) -> str:
    return "\n".join(sentences(rank(found, COLUMNS), weights="dinov2.pth", best_file="OUT/best"))


def test_a_gain_and_what_is_below():
    text = said(records(as_is=0.5, continue_dino=0.56, dino_small=0.40))
    assert "continuing dinov2.pth by continue-dino gave +6." in text
    assert "mIoU over dinov2.pth as it is\n" in text
    assert "from scratch by dino-small: -1" in text
    assert "no difference" not in text
    assert text.endswith("best file: OUT/best (continuing dinov2.pth by continue-dino)")


def test_a_loss():
    ranking = rank(records(as_is=0.56, continue_dino=0.5), COLUMNS)
    assert best_of(ranking).candidate == "as-is"
    text = said(records(as_is=0.56, continue_dino=0.5))
    assert "continue-dino gave -" in text and "it is worse" in text
    assert "no other candidate is above dinov2.pth as it is" in text


def test_an_interval_that_holds_nothing_is_called_so():
    noisy = {
        "as-is": {0: record(0.5)},
        "continue-dino": {seed: record(0.502, seed=seed, noise=0.2) for seed in range(3)},
    }
    ranking = rank(noisy, COLUMNS)
    found = next(ranked for ranked in ranking if ranked.candidate == "continue-dino").against_reference
    assert found.low < 0 < found.high
    assert "no difference that these labels can show" in said(noisy)


def test_the_floor_is_never_the_best_file():
    text = said(records(random=0.5, dino_small=0.4))
    assert "best file: OUT/best (from scratch by dino-small)" in text
    assert "nothing is above random weights" in text


def test_one_seed_has_an_interval_over_images_and_says_so():
    ranking = rank(records(seeds=1, as_is=0.5, continue_dino=0.56), COLUMNS)
    found = ranking[0].against_reference
    assert found.low < found.mean < found.high
    assert "validation images alone, as there is one seed" in interval_sentence(ranking, 40)


def test_one_validation_image_decides_nothing():
    found = {name: {0: record(iou, num_images=1)} for name, iou in (("as-is", 0.4), ("continue-dino", 0.6))}
    assert rank(found, COLUMNS)[0].against_reference.low is None
    assert "no difference that these labels can show" in said(found)
    assert "1 validation image is few" in interval_sentence(rank(found, COLUMNS), 1)


def test_a_seed_that_failed_is_left_out_of_the_pairs():
    found = records(random=0.4, dino_small=0.5)
    del found["dino-small"][1]
    ranking = rank(found, COLUMNS)
    assert ranking[0].seeds == [0, 2]
    assert ranking[0].against_reference.num_seeds == 2


def test_few_labels_have_a_difference_of_their_own():
    found = records(as_is=0.5, continue_dino=0.56)
    for by_seed in found.values():
        for one in by_seed.values():
            one["scores"] = one["scores"] | {"in-context 1/8": record(0.3)["scores"]["linear 1"]}
    ranked = rank(found, COLUMNS)[0]
    assert ranked.by_share["in-context 1/8"].mean == 0
    assert ranked.by_share["linear 1"].mean > 0.05
    assert "| continue-dino | 3 | 5" in ranking_table([ranked], COLUMNS, "as-is")


TIMINGS = {"as-is": Timing(0, 0, 30), "continue-dino": Timing(2, 5, 30), "dino-small": Timing(1, 5, 30)}


def test_the_plan_fits_the_hours_with_equal_steps():
    plan = choose_steps(TIMINGS, seeds=3, hours=1, longest=10_000, given=None)
    assert [candidate.num_seeds for candidate in plan] == [1, 3, 3]
    assert plan[0].steps == 0 and plan[1].steps == plan[2].steps
    assert 0.85 * 3600 < total_seconds(plan) <= 0.9 * 3600
    assert [PlannedCandidate.from_json(candidate.as_json()) for candidate in plan] == plan


def test_no_training_is_longer_than_the_longest_recipe():
    plan = choose_steps(TIMINGS, seeds=1, hours=100, longest=400, given=None)
    assert plan[1].steps == 400
    assert choose_steps(TIMINGS, seeds=1, hours=0.001, longest=400, given=7)[1].steps == 7


def test_the_least_hours_are_enough_and_less_is_not():
    with pytest.raises(UserError, match=r"the least is ([\d.]+), with which each training has 50 steps") as refused:
        choose_steps(TIMINGS, seeds=3, hours=0.01, longest=10_000, given=None)
    least = float(str(refused.value).partition("the least is ")[2].partition(",")[0])
    assert choose_steps(TIMINGS, seeds=3, hours=least, longest=10_000, given=None)[1].steps >= MIN_STEPS
    with pytest.raises(UserError):
        choose_steps(TIMINGS, seeds=3, hours=least - 0.011, longest=10_000, given=None)
