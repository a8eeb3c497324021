"""Settings written by earlier versions load under today's names."""

from typing import Any

import pytest
import yaml

from selfpatch.config import PretrainConfig
from selfpatch.config.io import config_of, override, read_yaml, to_dict
from selfpatch.config.renamed import RENAMED, upgrade
from selfpatch.errors import UserError
from selfpatch.pretraining.run_folder import RunFolder, result_affecting
from selfpatch.recipes import find_recipe

# As `selfpatch pretrain` wrote it before settings were renamed; every renamed one with a value that is no default.
OLD_FILE = """
recipe: dino-selfpatch-small
backbone: {name: vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, class_token: false,
  final_norm: false, drop_path: 0.0, position_resampling: dino}
aggregator: {num_blocks: 1, num_heads: null, mlp_ratio: 4.0, image_token: aggregator}
crops:
  global_size: 32
  num_global: 2
  global_scale: [0.4, 1.0]
  local_size: 24
  num_local: 4
  local_scale: [0.2, 0.5]
  flip_prob: 0.25
  jitter: [0.1, 0.2, 0.3, 0.4]
  jitter_prob: 0.7
  grey_prob: 0.6
  blur_prob: [0.0, 0.0, 0.0]
  blur_radius: [0.3, 1.5]
  solarize_prob: 0.0
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
objectives:
  dino:
    weight: 1.0
    head: {num_prototypes: 64, hidden_dim: 256, bottleneck_dim: 64, batch_norm: true, fix_prototype_norm: true,
      freeze_prototypes_epochs: 1}
    distillation: {student_temperature: 0.1, teacher_temperature: 0.015, warmup_teacher_temperature: 0.015,
      warmup_epochs: 0, centering: sinkhorn, center_momentum: 0.9}
    center_crops: global
  selfpatch:
    weight: 0.1
    head: {num_prototypes: 64, hidden_dim: 256, bottleneck_dim: 64, batch_norm: true, fix_prototype_norm: true,
      freeze_prototypes_epochs: 1}
    distillation: {student_temperature: 0.1, teacher_temperature: 0.015, warmup_teacher_temperature: 0.015,
      warmup_epochs: 0, centering: sinkhorn, center_momentum: 0.9}
    window_size: 3
    num_positives: 3
    borders: clip
    crops: global
optim: {batch_size: 16, accumulate: 1, lr: 0.001, lr_scaling: none, min_lr: 1.0e-05, epochs: 2.0, steps: null,
  warmup_epochs: 0.5, weight_decay: 0.04, weight_decay_end: 0.04, clip_norm: 1.0, clip: global}
teacher: {momentum: 0.99, momentum_end: 1.0}
seed: 3
evaluate: {data: null, every_steps: null, image_size: null, memory_size: 10240, num_neighbours: 7, max_images: 200}
efficiency: {precision: auto, num_workers: null, recompute: blocks, compile: false, light: workers}
run: {device: auto, log_every: 10, save_every: null, keep: 5, max_bad_share: 0.1, max_skipped: 20, stop_after_steps: 30}
"""

# Name of today: its value in that file, in the words of today.
EXPECTED = {
    "backbone.pos_embed_interpolation": "offset",
    "crops.hflip_prob": 0.25,
    "crops.color_jitter": (0.1, 0.2, 0.3, 0.4),
    "crops.color_jitter_prob": 0.7,
    "crops.grayscale_prob": 0.6,
    "crops.blur_sigma": (0.3, 1.5),
    "objectives.selfpatch.padding_mode": "none",
    "optim.clip_mode": "global",
    "evaluate.num_neighbors": 7,
    "efficiency.activation_checkpointing": "full",
    "efficiency.color_augmentation": "worker",
    "run.max_to_keep": 5,
    "run.max_bad_fraction": 0.1,
    "run.stop_at_step": 30,
}


def read(config: Any, name: str) -> Any:
    for key in name.split("."):
        config = getattr(config, key)
    return config


def exists(name: str) -> bool:
    try:
        read(find_recipe("dino-selfpatch"), name)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_earlier_names_gives_the_same_values(name, tmp_path):
    (tmp_path / "config.yaml").write_text(OLD_FILE)
    assert read(read_yaml(tmp_path / "config.yaml"), name) == EXPECTED[name]


def test_every_renamed_setting_is_expected_above_and_has_one_name():
    assert sorted(RENAMED.values()) == sorted(EXPECTED)
    assert [exists(old) != exists(new) for old, new in RENAMED.items()] == [True] * len(RENAMED)


def test_the_method_in_an_old_checkpoint_is_that_of_the_same_run_today(tmp_path):
    values = yaml.safe_load(OLD_FILE)
    method = {
        name: values[name] for name in ("backbone", "aggregator", "crops", "objectives", "optim", "teacher", "seed")
    }
    config = config_of(values)
    assert upgrade(method) == {name: value for name, value in upgrade(values).items() if name in method}
    assert result_affecting(to_dict(config_of(method))) == result_affecting(to_dict(config))
    RunFolder(tmp_path).require_same_method(method, config, tmp_path)
    with pytest.raises(UserError, match="crops.hflip_prob: 0.25 -> 0.5"):
        RunFolder(tmp_path).require_same_method(method, override(config, {"crops.hflip_prob": 0.5}), tmp_path)


def test_upgrade_leaves_its_argument_and_names_of_today_alone():
    values = {"crops": {"flip_prob": 0.5}, "run": None}
    assert upgrade(values) == {"crops": {"hflip_prob": 0.5}, "run": None}
    assert values == {"crops": {"flip_prob": 0.5}, "run": None}
    today = to_dict(PretrainConfig())
    assert upgrade(today) == today


def test_both_names_at_once_are_refused():
    with pytest.raises(UserError, match=r"crops.flip_prob is the old name of crops.hflip_prob; give one"):
        upgrade({"crops": {"flip_prob": 0.5, "hflip_prob": 0.2}})


def test_an_old_name_given_in_python_is_answered_with_that_of_today():
    with pytest.raises(
        UserError, match=r"unknown setting 'run.max_bad_share'; it is called 'run.max_bad_fraction' now"
    ):
        override(PretrainConfig(), {"run.max_bad_share": 0.5})
