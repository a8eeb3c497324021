"""A tracker that is not installed, or needs a login that is not there, or is unknown: one paragraph, before work begins."""

from importlib import util

import pytest

from tests.cli.conftest import finished_run, pretrain, pretrain_refused, refused, scenes  # noqa: F401


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_not_installed(name, pretrain_refused, monkeypatch):  # noqa: F811
    found = util.find_spec
    for module in ("tensorboard", "wandb"):
        monkeypatch.setattr(
            f"selfpatch.output.tracking.{module}.find_spec", lambda asked: None if asked == name else found(asked)
        )
    pretrain_refused("--track", name, says=(f"track is {name}", "not installed", f"pip install 'selfpatch[{name}]'"))


def test_not_logged_in(pretrain_refused, monkeypatch):  # noqa: F811
    from types import SimpleNamespace

    settings = SimpleNamespace(settings=SimpleNamespace(mode="online"))
    fake = SimpleNamespace(setup=lambda: settings, login=lambda prompt, verify: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("selfpatch.output.tracking.wandb.find_spec", lambda name: name)
    monkeypatch.setattr("selfpatch.output.tracking.wandb._import", lambda: fake)
    pretrain_refused("--track", "wandb", says=("nobody is logged in", "wandb login", "WANDB_MODE=offline"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mlflow"], ["--track", "'mlflow'", "tensorboard or wandb"]),
        (["tensorboard", "tensorboard"], ["track", "give each of them once"]),
    ],
)
def test_unknown_or_twice(words, says, pretrain_refused):  # noqa: F811
    pretrain_refused("--track", *words, says=says)
