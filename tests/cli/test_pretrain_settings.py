"""Settings of `selfpatch pretrain` that cannot be: named with the value and what is allowed."""

import pytest
import torch

from selfpatch import cli
from selfpatch.config import AggregatorConfig
from selfpatch.config.io import read_yaml

NO_CUDA = not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        # names
        (["--optim.lrr", "1"], ["--optim.lrr", "Did you mean --optim.lr"]),
        (["--optim.epoch=3"], ["--optim.epoch", "Did you mean --optim.epochs"]),
        (["--backbone.depht", "3"], ["--backbone.depth?", "selfpatch pretrain --help"]),
        (["--lr", "3"], ["--lr", "--optim.lr?"]),
        (["--crops.flip-prob", "1"], ["--crops.flip-prob", "--crops.hflip-prob"]),
        (["--recipe", "dino", "--objectives.selfpatch.weight", "1"], ["objectives.selfpatch", "recipe"]),
        (["--recipe", "dino", "--objectives.selfpatch.weight", "1"], ["--add selfpatch"]),
        (["--recipe", "dino", "--add", "selfpach"], ["unknown objective 'selfpach'", "did you mean 'selfpatch'"]),
        (["--recipe", "dino", "--add", "dino"], ["dino has the objective dino already"]),
        (["stray"], ["'stray'", "IMAGES OUT"]),
        # types
        (["--optim.lr", "high"], ["--optim.lr", "'high'", "a number or None"]),
        (["--seed=one"], ["--seed", "'one'", "a whole number"]),
        (["--crops.global-size", "3.5"], ["--crops.global-size", "'3.5'", "whole number, 2 whole numbers or None"]),
        (["--crops.global-scale", "0.5"], ["--crops.global-scale", "'0.5'", "2 numbers"]),
        (["--seed"], ["--seed", "no value", "a whole number"]),
        (["--optim.lr-scaling", "x"], ["--optim.lr-scaling", "'x'", "linear, sqrt or none"]),
        # ranges
        (["--optim.lr", "-1"], ["optim.lr", "-1.0", "above 0"]),
        (["--backbone.drop-path", "2"], ["backbone.drop-path", "2.0", "[0, 1)"]),
        (["--objectives.dino.head.num-prototypes", "0"], ["objectives.dino.head.num-prototypes", "0", "at least 1"]),
        (["--objectives.selfpatch.head.hidden-dim", "0"], ["objectives.selfpatch.head.hidden-dim", "0", "at least 1"]),
        (["--objectives.selfpatch.num-positives", "9"], ["objectives.selfpatch.num-positives", "9", "1 to 8"]),
        (["--objectives.selfpatch.window-size", "4"], ["objectives.selfpatch.window-size", "4", "odd", "at least 3"]),
        (["--efficiency.num-workers", "-1"], ["efficiency.num-workers", "-1", "at least 0"]),
        (["--run.save-every", "0"], ["run.save-every", "0", "at least 1"]),
        (["--evaluate.image-size", "0"], ["evaluate.image-size", "0", "at least 1"]),
        (["--run.max-bad-fraction", "20"], ["run.max-bad-fraction", "20.0", "[0, 1]"]),
        (["--seed", "-1"], ["seed", "-1", "[0, 2147483647]"]),
        (["--seed", "9223372036854775808"], ["seed", "9223372036854775808", "[0, 2147483647]"]),
        # what must fit together
        (["--crops.global-size", "36"], ["crops.global-size 36 x 36", "patch size 8 x 8", "32 x 32"]),
        (["--crops.local-size", "20"], ["crops.local-size 20 x 20", "patch size 8 x 8", "crops.local-size 16"]),
        (["--crops.local-size", "32"], ["crops.local-size", "32", "smaller than global-size 32", "num-local 0"]),
        (["--optim.accumulate", "3"], ["optim.batch-size", "4", "3 equal parts", "accumulate"]),
        (["--objectives.selfpatch.window-size", "5"], ["4 x 4", "5 x 5", "larger crops"]),
        (["--backbone.num-heads", "5"], ["'vit_tiny_patch16_224'", "leave out the setting"]),
        # names of things
        (["--backbone.name", "vit_tinny_patch16_224"], ["'vit_tinny", "vit_tiny_patch16_224"]),
        (["--backbone.name", "resnet18"], ["resnet18", "vision transformer"]),
        (["--recipe", "dino-selfpach"], ["'dino-selfpach'", "'dino-selfpatch'", "dino-small"]),
        pytest.param(
            ["--run.device", "cuda"], ["'cuda'", "cpu", "auto"], marks=pytest.mark.skipif(not NO_CUDA, reason="it is there")
        ),
        (["--run.device", "tpu"], ["'tpu'", "cpu"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_settings(options, says, pretrain_refused):
    pretrain_refused(*options, says=says)


def test_golden_paragraphs(refused, scenes, tmp_path):
    """How mistakes read, whole: an option, a value, a range."""
    paragraphs = {
        ("--optim.lrr", "1"): "unknown option --optim.lrr. Did you mean --optim.lr? "
        "All options: selfpatch pretrain --help",
        ("--optim.lr", "high"): "--optim.lr is 'high'; it must be a number or None. "
        "All options: selfpatch pretrain --help",
        ("--crops.hflip-prob", "1.5"): "crops.hflip-prob is 1.5; it must be a probability in [0, 1]",
    }
    for options, paragraph in paragraphs.items():
        shown = refused(["pretrain", scenes / "images", tmp_path / "out", *options], out=tmp_path / "out")
        assert shown == f"selfpatch: {paragraph}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, ["config.yaml", "give the config.yaml of a run"]),
        (b"optim:\n  lrr: 1\n", ["config.yaml", "'optim.lrr'", "'optim.lr'?"]),
        (b"optim:\n  lr: high\n", ["config.yaml", "optim.lr", "'high'", "a number or null"]),
        (b"optim:\n  lr: -1\n", ["config.yaml", "optim.lr", "-1.0", "above 0"]),
        (b"optim:\n  batch_size: 2.5\n", ["optim.batch-size", "2.5", "auto, a whole number or null"]),
        (b"a: [\n", ["config.yaml", "YAML"]),
        (b"\xff\xd8\xff\xe0 a JPEG", ["config.yaml", "YAML"]),
        (b"[" * 3000, ["config.yaml", "YAML"]),
        (b"seed: 2020-99-99\n", ["config.yaml", "YAML"]),
        (b"just words", ["config.yaml", "'just words'", "group of settings"]),
        (b"", ["config.yaml", "None", "group of settings"]),
    ],
)
def test_settings_file(text, says, pretrain_refused, tmp_path):
    if text is not None:
        (tmp_path / "config.yaml").write_bytes(text)
    pretrain_refused("--config", tmp_path / "config.yaml", says=says)


def test_a_file_and_a_recipe_at_once(pretrain_refused, scenes):
    pretrain_refused("--config", scenes / "config.yaml", "--recipe", "dino", says=("--config", "--recipe", "not both"))


def test_a_small_rate_in_a_file_as_people_write_it(pretrain, tmp_path, scenes):
    text = (scenes / "config.yaml").read_text()
    assert "  lr: 0.001\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("  lr: 0.001\n", "  lr: 5e-4\n"))
    assert pretrain(tmp_path / "out", "--config", tmp_path / "config.yaml", "--optim.steps", 1) == 0
    assert "  lr: 0.0005\n" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_recipe_does_not_refuse_crops_that_it_derived(scenes, tmp_path, capsys):
    small = ["--backbone.depth", 1, "--backbone.embed-dim", 32, "--backbone.num-heads", 2]
    command = [
        "pretrain",
        scenes / "images",
        tmp_path / "out",
        "--recipe",
        "dino-selfpatch-small",
        "--run.device",
        "cpu",
    ]
    options = ["--backbone.name", "vit_small_patch14_dinov2", *small, "--optim.steps", 1, "--efficiency.num-workers", 0]
    assert cli.main([str(argument) for argument in [*command, *options]]) == 0
    assert "crops.global-size 98: no GPU, in whole patches of 14" in capsys.readouterr().out


@pytest.mark.parametrize("form", [["--add", "selfpatch,koleo"], ["--add=selfpatch,koleo"]])
def test_objectives_are_added_to_a_recipe_by_one_option(form, scenes, tmp_path, capsys):
    small = {
        "--backbone.name": "vit_tiny_patch16_224", "--backbone.depth": 1, "--backbone.embed-dim": 24,
        "--backbone.num-heads": 2, "--crops.global-size": 64, "--crops.local-size": 48, "--crops.num-local": 1,
        "--optim.batch-size": 4, "--optim.steps": 1, "--optim.warmup-epochs": 0, "--run.device": "cpu",
        "--objectives.dino.head.num-prototypes": 16, "--objectives.selfpatch.head.num-prototypes": 16,
        "--objectives.selfpatch.weight": 0.25, "--efficiency.num-workers": 0,
    }  # fmt: skip
    out = tmp_path / "out"
    arguments = [
        "pretrain",
        scenes / "images",
        out,
        "--recipe",
        "dino",
        *form,
        *(x for pair in small.items() for x in pair),
    ]
    assert cli.main(list(map(str, arguments))) == 0
    assert "loss = 1 x dino + 0.25 x selfpatch + 0.1 x koleo" in capsys.readouterr().out
    config = read_yaml(out / "config.yaml")
    assert config.aggregator == AggregatorConfig() and config.backbone.class_token is False
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    assert "--add" in capsys.readouterr().out
