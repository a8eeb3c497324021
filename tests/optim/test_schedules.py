"""Schedules at their seams; the parity kits hold them to the original's numbers."""

import pytest

from selfpatch.optim.schedules import epochwise_linear, warmup_cosine, warmup_poly


def test_warmup_includes_both_ends_and_the_cosine_follows_without_a_gap():
    value = warmup_cosine(1.0, 0.1, num_steps=20, warmup_steps=5)
    assert [value(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert value(5) == 1.0
    assert value(5 + 15 // 2) == pytest.approx(0.55, abs=0.05)
    assert 0.1 < value(19) < 0.12
    assert value(20) == value(10_000) == pytest.approx(0.1)


def test_the_cosine_never_rises():
    value = warmup_cosine(1.0, 0.0, num_steps=50, warmup_steps=10)
    values = [value(step) for step in range(10, 60)]
    assert values == sorted(values, reverse=True)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        warmup_cosine(1.0, 0.0, num_steps=5, warmup_steps=6)


def test_one_stair_stays_at_the_start():
    value = epochwise_linear(0.04, 0.07, num_epochs=1, steps_per_epoch=3)
    assert [value(0), value(2), value(3)] == [0.04, 0.04, 0.07]


def test_poly_and_its_warmup_are_mmcvs():
    """PolyLrUpdaterHook: (1 - iter / max_iters) ** power; in the warm-up less (1 - iter / warmup) * (1 - ratio) of it."""
    for power in (1.0, 0.9):
        value = warmup_poly(6e-5, 40_000, 1500, start=1e-6, power=power)
        for step in (0, 1, 749, 1499, 1500, 20_000, 39_999):
            expected = 6e-5 * (1 - step / 40_000) ** power
            if step < 1500:
                expected *= 1 - (1 - step / 1500) * (1 - 1e-6)
            assert value(step) == pytest.approx(expected, rel=1e-12)
    assert value(0) == pytest.approx(6e-11)
    assert value(40_000) == value(50_000) == 0
    assert [warmup_poly(1.0, 4)(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
