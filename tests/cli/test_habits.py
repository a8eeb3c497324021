"""`recipes`, `completion`, settings files with help, and mistakes that name the page of the documentation."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfpatch import cli
from selfpatch.cli.docs_pages import PAGES
from selfpatch.config.io import field_help, read_yaml, write_yaml
from selfpatch.config.optim import OptimConfig
from selfpatch.recipes import RECIPES, find_recipe
from tests.small_models import tiny_config

ROOT = Path(__file__).parents[2]


def test_recipes_has_a_line_of_its_own_for_each(capsys):
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(RECIPES)
    assert len({line.split(maxsplit=1)[1] for line in listed}) == len(RECIPES)
    assert all(len(line) <= 120 for line in listed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_printed_as_a_file_that_starts_it(recipe, tmp_path, capsys):
    assert cli.main(["recipes", recipe]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert read_yaml(tmp_path / "config.yaml") == find_recipe(recipe)


def test_unknown_recipe(refused, tmp_path):
    refused(["recipes", "dino-smal"], "'dino-smal'", "'dino-small'", out=tmp_path)


def test_settings_files_say_above_each_setting_what_it_is(tmp_path):
    write_yaml(tiny_config(), tmp_path / "config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    settings = [i for i, line in enumerate(lines) if re.match(r" *\w+: ?", line)]
    assert len(settings) > 100
    bare = [lines[i] for i in settings if not lines[i - 1].lstrip().startswith("# ")]
    assert bare == ["  ibot: null", "  moco_v3: null", "  moby: null", "  koleo: null", "  gram: null", "  neco: null"]
    at = lines.index("  log_every: 1")
    assert lines[at - 1] == "  # steps between lines of the log"
    assert field_help(OptimConfig)["clip_norm"] in " ".join(line.strip(" #") for line in lines)
    assert read_yaml(tmp_path / "config.yaml") == tiny_config()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell):
    """In a process of its own: tyro's output, as it would be redirected to a file."""
    done = subprocess.run(
        [sys.executable, "-m", "selfpatch", "completion", shell], capture_output=True, text=True, check=True, timeout=60
    )
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert "--optim.lr" in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True, timeout=60)


def test_completion_of_an_unknown_shell(refused, tmp_path):
    refused(["completion", "csh"], "SHELL is 'csh'", "bash, zsh or fish", out=tmp_path)
    refused(["completion"], "SHELL is missing", out=tmp_path)


def test_mistakes_name_the_page(refused, tmp_path):
    assert refused(["embed", "m", tmp_path / "nope", tmp_path / "o"], out=tmp_path).rstrip().endswith(".md)")
    assert "see docs" not in refused(["pretrain"], out=tmp_path)


def test_pages_and_rooms_exist():
    for room, page in PAGES.items():
        assert (ROOT / page).is_file()
        path = ROOT / room.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), room
