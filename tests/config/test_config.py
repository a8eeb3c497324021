"""Settings: round trip, unknown names, wrong types, ranges."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from selfpatch.config import (
    BackboneConfig,
    CropsConfig,
    EvaluateConfig,
    HeadConfig,
    ObjectivesConfig,
    OptimConfig,
    PretrainConfig,
)
from selfpatch.config.io import differences, from_dict, override, read_yaml, to_dict, write_yaml
from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.errors import UserError
from selfpatch.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_survives_its_file(recipe, tmp_path):
    config = replace(find_recipe(recipe), evaluate=EvaluateConfig(data=Path("a/b")))
    write_yaml(config, tmp_path / "config.yaml", header="two\nlines")
    assert read_yaml(tmp_path / "config.yaml") == config
    assert config.recipe == recipe


def test_non_square_crops_survive(tmp_path):
    config = PretrainConfig(crops=CropsConfig(global_size=(64, 96), local_size=(32, 48)))
    write_yaml(config, tmp_path / "config.yaml")
    assert read_yaml(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim.lrr": 1}, r"unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
        ({"nonsense.lr": 1}, "no group 'nonsense'"),
        ({"optim.lr": "fast"}, "optim.lr is 'fast'; it must be a number or null"),
        ({"optim.batch_size": 2.5}, "optim.batch-size is 2.5; it must be auto, a whole number or null"),
        ({"optim.clip_mode": "none"}, "optim.clip-mode is 'none'; it must be parameter or global"),
        ({"optim.lr": -1.0}, "above 0"),
        ({"optim.accumulate": 3}, "cannot be cut into 3 equal parts"),
        ({"crops.hflip_prob": 1.5}, r"probability in \[0, 1\]"),
        ({"crops.local_size": 224}, "local-size is 224; it must be smaller than global-size 224"),
        ({"crops.global_scale": [0.5, 0.2]}, "ascending order"),
        ({"crops.mean": [0.5, float("nan"), 0.5]}, r"crops.mean is \(0.5, nan, 0.5\); each must be finite"),
        ({"optim.epochs": float("inf")}, "optim.epochs is inf; it must be finite and above 0"),
        ({"seed": 2**31}, r"seed is 2147483648; it must be in \[0, 2147483647\]"),
        ({"teacher.momentum": 1.5}, r"in \[0, 1\]"),
        ({"aggregator": None}, "aggregator is None; objectives.selfpatch needs one"),
        ({"objectives.selfpatch.window_size": 4}, "window-size is 4; it must be an odd number"),
        (
            {"objectives.selfpatch.head.hidden_dim": 0},
            "objectives.selfpatch.head.hidden-dim is 0; it must be at least 1",
        ),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        override(find_recipe("dino-selfpatch"), settings)


def test_settings_by_dotted_name_with_dashes():
    config = override(find_recipe("dino-selfpatch"), {"optim.batch-size": 8, "objectives.selfpatch.weight": 1})
    assert config.optim.batch_size == 8
    assert config.objectives.selfpatch.weight == 1.0
    assert differences(to_dict(find_recipe("dino-selfpatch")), to_dict(config)) == [
        "objectives.selfpatch.weight: 0.1 -> 1.0",
        "optim.batch_size: 1024 -> 8",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("recipe: [1", "not a settings file in YAML"),
        ("recipe: !!python/object/apply:os.system ['touch canary']\n", "not a settings file in YAML"),
        ("- 1\n", "group of settings"),
        ("colour: red\n", "unknown setting 'colour'"),
    ],
)
def test_files_that_are_no_settings(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_yaml(Path("config.yaml"))
    assert not Path("canary").exists()


def test_from_dict_names_the_place_of_a_wrong_value():
    with pytest.raises(ValueError, match="crops.color-jitter"):
        from_dict(PretrainConfig, {"crops": {"color_jitter": [0.4, 0.4]}})


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optim: {lr: 5e-4}", "lr", 5e-4),  # PyYAML reads 5e-4 as text
        ("optim: {lr: '5e-4'}", "lr", 5e-4),
        ("optim: {lr: 5E-4}", "lr", 5e-4),
        ("optim: {lr: 5.0e-4}", "lr", 5e-4),
        ("optim: {lr: 1}", "lr", 1.0),
        ("optim: {lr: null}", "lr", None),
        ("optim: {batch_size: 1e3}", "batch_size", 1000),
        ("optim: {batch-size: 64}", "batch_size", 64),
        ("optim: {batch_size: 64.0}", "batch_size", 64),
        ("optim: {batch_size: auto}", "batch_size", "auto"),
        ("optim: {weight_decay: .04}", "weight_decay", 0.04),
    ],
)
def test_numbers_in_yaml_are_read_as_people_write_them(text, name, value, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    read = getattr(read_yaml(tmp_path / "config.yaml").optim, name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {batch_size: 2.5}", "optim.batch-size is 2.5; it must be auto, a whole number or null"),
        ("optim: {batch_size: 25e-1}", "optim.batch-size is '25e-1'; it must be auto, a whole number or null"),
        ("crops: {global_size: big}", "crops.global-size is 'big'; it must be a whole number, 2 whole numbers or null"),
        ("crops: {global_size: [1, 2, 3]}", "crops.global-size is [1, 2, 3]; it must be a whole number, 2 whole"),
        ("crops: {hflip_prob: half}", "crops.hflip-prob is 'half'; it must be a number"),
        ("crops: {hflip_prob: true}", "crops.hflip-prob is True; it must be a number"),
        ("optim: {lr_scaling: log}", "optim.lr-scaling is 'log'; it must be linear, sqrt or none"),
        ("optim: {clip_norm: infinity}", "optim.clip-norm is 'infinity'; it must be a number"),
        ("optim: {clip_norm: .inf}", "optim.clip-norm is inf; it must be finite and at least 0"),
        ("optim: {epochs: " + "9" * 400 + "}", "it must be a number or null"),
        ("optim: {steps: " + "9" * 400 + "}", "it must be a whole number or null"),
        ("optim: [1]", "optim is [1]; it must be a group of settings"),
        ("optim: {lr: 1, lr: -1}", "optim.lr is -1.0; it must be above 0"),
        ("optim: {batch-size: 1, batch_size: 2}", "optim.batch_size is given twice"),
        ("backbone: {final_norm: 1}", "backbone.final-norm is 1; it must be true or false"),
        ("objectives: {dino: null}", "objectives has none that is set; give at least one of: dino, selfpatch"),
        ("objectives: {selfpatch: {}}", "aggregator is None; objectives.selfpatch needs one"),
        (
            "objectives: {dino: {head: {hidden_dim: 0}}}",
            "objectives.dino.head.hidden-dim is 0; it must be at least 1",
        ),
        (
            "aggregator: {}\nobjectives: {selfpatch: {distillation: {center_momentum: 1}}}",
            "objectives.selfpatch.distillation.center-momentum is 1.0; it must be in [0, 1)",
        ),
    ],
)
def test_a_file_with_a_wrong_value_names_the_setting_the_value_and_all_that_is_allowed(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_yaml(tmp_path / "config.yaml")


def test_ranges_name_the_group_when_a_part_is_made_by_itself():
    for make, message in {
        lambda: CropsConfig(hflip_prob=1.5): "crops.hflip-prob is 1.5; it must be a probability in [0, 1]",
        lambda: HeadConfig(hidden_dim=0): "head.hidden-dim is 0; it must be at least 1",
        lambda: OptimConfig(steps=10**400): None,
        lambda: BackboneConfig(drop_path=float("nan")): "backbone.drop-path is nan; it must be finite and",
    }.items():
        if message is None:
            make()
            continue
        with pytest.raises(UserError, match=re.escape(message)):
            make()


def test_a_new_objective_is_one_field():
    """Nothing in config and recipes but ObjectivesConfig lists the objectives."""

    @dataclass(frozen=True)
    class Other(ObjectiveConfig):
        head: HeadConfig = HeadConfig(num_prototypes=None)

    @dataclass(frozen=True)
    class WithOther(ObjectivesConfig):
        other: Other | None = None

    assert WithOther(dino=None, other=Other()).given() == {"other": Other()}
    with pytest.raises(UserError, match="give at least one of: dino, selfpatch, .*other"):
        WithOther(dino=None)
    config = replace(find_recipe("dino-small"), objectives=WithOther(dino=None, other=Other()))
    assert config.objectives.other == Other()
