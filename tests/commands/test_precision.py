"""efficiency.precision "auto": bf16 where a CPU multiplies it, and the one a run began with from then on."""

from dataclasses import replace

import pytest
import torch

from selfpatch.commands.pretrain import build_parts, pretrain
from selfpatch.commands.run_setup.resolve_config import resolve_run_precision
from selfpatch.config.io import override, read_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.training import precision
from tests.small_models import tiny_config

CPU = torch.device("cpu")
QUERY = "cpu_bf16_instructions"


def with_precision(value: str):
    return override(tiny_config(), {"efficiency.precision": value})


@pytest.mark.parametrize(
    ("has_amx", "given", "begun", "expected", "listed"),
    [
        (False, "auto", None, "float32", None),
        (True, "auto", None, "bf16", "this CPU has AMX instructions"),
        (True, "float32", None, "float32", None),
        (True, "auto", "float32", "float32", "as this run began; this CPU has AMX"),
        (False, "auto", "bf16", "bf16", "as this run began; this CPU multiplies no bf16"),
        (True, "auto", "auto", "float32", "as this run began"),  # by a version that took bf16 on GPUs alone
    ],
)
def test_which_precision(has_amx, given, begun, expected, listed, monkeypatch):
    if has_amx:
        monkeypatch.setattr(precision, QUERY, lambda: "AMX instructions")
    config, resolved = resolve_run_precision(with_precision(given), begun and with_precision(begun), CPU)
    assert config.efficiency.precision == expected
    assert len(resolved) == (listed is not None)
    assert listed is None or (resolved[0].value == expected and listed in resolved[0].reason)


def test_another_precision_than_the_run_began_with_is_said(capsys):
    resolve_run_precision(with_precision("float32"), with_precision("bf16"), CPU)
    assert "precision is float32, this run began with bf16" in capsys.readouterr().out


def test_a_run_says_it_and_goes_on_with_it_on_another_machine(tmp_path, monkeypatch, capsys):
    write_scenes(tmp_path / "scenes", num_unlabeled=4, num_train=1, num_val=1, size=48, seed=0)
    monkeypatch.setattr("selfpatch.commands.callbacks.monitor.visualize", lambda *_, **__: None)
    settings = {"optim.steps": 3, "efficiency.num_workers": 0}
    begin = settings | {"run.stop_at_step": 2}
    with monkeypatch.context() as patch:
        patch.setattr(precision, QUERY, lambda: "AMX instructions")
        pretrain(tmp_path / "scenes/images", tmp_path / "run", config=tiny_config(), settings=begin)
    assert "efficiency.precision bf16: this CPU has AMX instructions" in capsys.readouterr().out
    assert read_yaml(tmp_path / "run/config.yaml").efficiency.precision == "bf16"
    result = pretrain(tmp_path / "scenes/images", tmp_path / "run", config=tiny_config(), settings=settings)
    assert result.steps_done == 3
    assert "efficiency.precision bf16: as this run began; this CPU multiplies no bf16" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "size", "fused"), [("bf16", 32, False), ("float32", 32, True), ("bf16", 192, True)])
def test_attention_is_plain_in_bf16_and_for_few_tokens(value, size, fused):
    config = with_precision(value)
    config = replace(config, crops=replace(config.crops, global_size=size))
    parts = build_parts(config, 8, CPU)
    assert {block.attn.fused_attn for block in parts.state.student_teacher.student.backbone.blocks} == {fused}
    assert all(block.attn.fused_attn for block in parts.state.student_teacher.teacher.backbone.blocks)


def test_the_query_is_torchs(monkeypatch):
    monkeypatch.undo()
    found = precision.cpu_bf16_instructions()
    assert (found is None) == (precision.fastest_precision(CPU)[0] == "float32")
    for name, words in (("amx_bf16", "AMX instructions"), ("avx512_bf16", "AVX512-BF16 instructions"), ("avx2", None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True}, raising=False)
        assert precision.cpu_bf16_instructions() == words
