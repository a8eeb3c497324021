"""What recipes leave open is filled in by rules, and what was given is left alone."""

import math

import pytest

from selfpatch.config.io import override, to_dict
from selfpatch.recipes import RECIPES, find_recipe
from selfpatch.recipes.derive import RunFacts, derive


def missing(values: object, where: str = "") -> list[str]:
    """Settings that a run cannot do without and that are None."""
    needed = {"backbone.name", "crops.global_size", "crops.local_size", "optim.batch_size", "optim.lr", "optim.epochs"}
    needed |= {"optim.warmup_epochs", "teacher.momentum"}
    if isinstance(values, dict):
        return [line for key, value in values.items() for line in missing(value, f"{where}.{key}".strip("."))]
    return [where] if values is None and (where in needed or where.endswith("num_prototypes")) else []


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("num_images", [4, 100, 1_500, 100_000, 20_000_000])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_nothing_stays_open_and_every_choice_has_a_reason(recipe, num_images, on_gpu):
    config, derived = derive(find_recipe(recipe), RunFacts(num_images, on_gpu))
    steps_instead = {"optim.epochs"} if config.optim.steps else set()
    assert set(missing(to_dict(config))) <= steps_instead
    assert all(reason for _, _, reason in derived)
    if recipe in ("dino", "dino-selfpatch"):
        assert derived == [], "the authors' run is what it is"
    else:
        assert config.optim.batch_size <= num_images


def test_what_is_given_stays_and_the_rest_follows_it():
    facts = RunFacts(10_000, on_gpu=True)
    given = override(find_recipe("dino-selfpatch-small"), {"optim.batch_size": 64, "optim.epochs": 10})
    config, derived = derive(given, facts)
    assert (config.optim.batch_size, config.optim.epochs) == (64, 10)
    assert config.objectives.dino.head.num_prototypes == config.objectives.selfpatch.head.num_prototypes == 128
    whole, _ = derive(find_recipe("dino-selfpatch-small"), facts)
    assert whole.optim.batch_size == 256
    assert whole.optim.lr == pytest.approx(config.optim.lr * math.sqrt(256 / 64))
    assert {d.setting for d in derived}.isdisjoint({"optim.batch-size", "optim.epochs"})


def test_short_runs_have_a_quick_teacher_and_long_ones_a_slow_one():
    momenta = [
        derive(override(find_recipe("demo"), {"optim.steps": steps}), RunFacts(1000, False))[0].teacher.momentum
        for steps in (300, 1_000, 10_000)
    ]
    assert momenta == sorted(momenta)
    assert momenta[0] == 0.99
    assert momenta[-1] == 0.996


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'dino-selfpatch'"):
        find_recipe("dino-selfpach")


@pytest.mark.parametrize("side", [48, 64, 96, 160, 224])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_local_crops_follow_the_global_ones(side, on_gpu):
    given = override(find_recipe("dino-selfpatch-small"), {"crops.global_size": side})
    config, _ = derive(given, RunFacts(1000, on_gpu))
    assert config.crops.local_size < side
    assert config.crops.local_size % 16 == 0
    assert derive(find_recipe("dino-selfpatch-small"), RunFacts(1000, True))[0].crops.local_size == 96
