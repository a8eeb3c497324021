"""What recipes leave open is filled in by rules, and what was given is left alone."""

import math

import pytest
import torch

from selfpatch.commands.run_setup.resolve_config import run_facts
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


def facts_of(recipe: str, num_images: int, *, on_gpu: bool) -> RunFacts:
    patch_size, embed_dim = (8, 96) if recipe == "demo" else (16, 384 if on_gpu else 192)
    return RunFacts(num_images, on_gpu, patch_size, embed_dim)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("num_images", [4, 100, 1_500, 100_000, 20_000_000])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_nothing_stays_open_and_every_choice_has_a_reason(recipe, num_images, on_gpu):
    config, derived = derive(find_recipe(recipe), facts_of(recipe, num_images, on_gpu=on_gpu))
    steps_instead = {"optim.epochs"} if config.optim.steps else set()
    assert set(missing(to_dict(config))) <= steps_instead
    assert all(reason for _, _, reason in derived)
    if find_recipe(recipe).optim.batch_size is not None:  # those of the authors, who leave nothing open
        assert derived == [], "the authors' run is what it is"
    else:
        assert config.optim.batch_size <= num_images


def test_what_is_given_stays_and_the_rest_follows_it():
    facts = RunFacts(10_000, on_gpu=True, patch_size=16, embed_dim=384)
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
        derive(
            override(find_recipe("demo"), {"optim.steps": steps}), RunFacts(1000, False, patch_size=8, embed_dim=96)
        )[0].teacher.momentum
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
    config, _ = derive(given, RunFacts(1000, on_gpu, patch_size=16, embed_dim=192))
    assert config.crops.local_size < side
    assert config.crops.local_size % 16 == 0
    assert (
        derive(find_recipe("dino-selfpatch-small"), RunFacts(1000, True, patch_size=16, embed_dim=384))[
            0
        ].crops.local_size
        == 96
    )


@pytest.mark.parametrize(
    ("name", "patch_size", "embed_dim"),
    [
        ("vit_tiny_patch16_224", 16, 192),
        ("vit_small_patch14_dinov2", 14, 384),
        ("vit_giant_patch14_dinov2", 14, 1536),
        ("vit_so400m_patch14_siglip_224", 14, 1152),
        ("vit_base_patch32_224", 32, 768),
        ("vit_small_patch8_224", 8, 384),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_crops_and_rate_follow_the_backbone_whatever_its_name(name, patch_size, embed_dim, device):
    """Width and patch size of timm's models, as timm documents them; lr is 2e-3 at 96 wide and 64 images per step."""
    given = override(find_recipe("dino-selfpatch-small"), {"backbone.name": name, "optim.batch_size": 64})
    facts = run_facts(given, 1000, torch.device(device))
    assert (facts.patch_size, facts.embed_dim) == (patch_size, embed_dim)
    config, _ = derive(given, facts)
    for size in (config.crops.global_size, config.crops.local_size):
        assert size % patch_size == 0
    assert config.crops.local_size < config.crops.global_size
    assert abs(config.crops.global_size - (224 if device == "cuda" else 96)) < patch_size
    assert config.optim.lr == pytest.approx(2e-3 * 96 / embed_dim)


def test_what_is_changed_of_a_backbone_counts():
    facts = run_facts(find_recipe("demo"), 1000, torch.device("cpu"))
    assert facts == RunFacts(1000, False, patch_size=8, embed_dim=96, has_cls_token=False)
    facts = run_facts(find_recipe("dino-small"), 1000, torch.device("cuda"))
    assert facts == RunFacts(1000, True, patch_size=16, embed_dim=384, has_cls_token=False)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("num_images", [500, 500_000])
def test_continuing_is_shorter_slower_and_spares_the_backbone_at_first(num_images, on_gpu):
    """A tenth of the images shown, a fifth of the rate; heads first, a tenth of the steps and at most 1,000."""
    facts = RunFacts(num_images, on_gpu, patch_size=14, embed_dim=384)
    scratch, _ = derive(find_recipe("dino-small"), facts)
    config, derived = derive(find_recipe("continue"), facts)
    assert config.crops.global_size % 14 == config.crops.local_size % 14 == 0
    assert config.optim.batch_size == scratch.optim.batch_size
    assert config.optim.lr == pytest.approx(scratch.optim.lr / 5)
    assert 1 <= config.optim.epochs <= min(scratch.optim.epochs, 200)
    steps_per_epoch = num_images // config.optim.batch_size
    num_steps = config.optim.epochs * steps_per_epoch
    rest = config.optim.freeze_backbone_epochs * steps_per_epoch
    assert rest == pytest.approx(min(0.1 * num_steps, 1000), rel=0.01)
    horizon = 1 / (1 - config.teacher.momentum)
    assert horizon == pytest.approx(min(max(num_steps / 4, 100), 1000), rel=0.05)
    assert 250 <= num_steps <= 20_000
    reasons = {d.setting: d.reason for d in derived}
    assert "heads learn before the backbone moves" in reasons["optim.freeze-backbone-epochs"]


def test_the_image_token_is_the_class_token_where_that_is_enough():
    with_class, without = (RunFacts(1000, False, 16, 384, has_cls_token=has) for has in (True, False))
    assert derive(find_recipe("continue"), with_class)[0].aggregator is None
    assert derive(find_recipe("continue"), without)[0].aggregator.image_token == "aggregator"
    assert derive(find_recipe("continue-selfpatch"), with_class)[0].aggregator.image_token == "aggregator"
    given = override(find_recipe("continue-selfpatch"), {"aggregator.image_token": "class_token"})
    assert derive(given, with_class)[0].aggregator.image_token == "class_token"
