"""Settings: round trip, unknown names, wrong types, ranges."""

from dataclasses import replace
from pathlib import Path

import pytest

from selfpatch.config import CropsConfig, EvaluateConfig, PretrainConfig
from selfpatch.config.io import differences, from_dict, override, read_yaml, to_dict, write_yaml
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
        ({"optim.lr": "fast"}, "optim.lr is 'fast'; it must be float"),
        ({"optim.batch_size": 2.5}, "optim.batch_size is 2.5; it must be int"),
        ({"optim.clip": "none"}, "'parameter' or 'global'"),
        ({"optim.lr": -1.0}, "above 0"),
        ({"optim.accumulate": 3}, "cannot be cut into 3 equal parts"),
        ({"crops.hflip_prob": 1.5}, r"probability in \[0, 1\]"),
        ({"crops.local_size": 224}, "not smaller than"),
        ({"crops.global_scale": [0.5, 0.2]}, "0 < low <= high <= 1"),
        ({"teacher.momentum": 1.5}, r"in \[0, 1\]"),
        ({"aggregator": None}, "needs an aggregator"),
        ({"objectives.selfpatch.window_size": 4}, "odd"),
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
    with pytest.raises(ValueError, match="crops.color_jitter"):
        from_dict(PretrainConfig, {"crops": {"color_jitter": [0.4, 0.4]}})
