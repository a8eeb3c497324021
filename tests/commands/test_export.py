"""`selfpatch export` in every format, from the command line; and a run that is continued from each of them."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.cli import main
from selfpatch.cli.commands.export import Export
from selfpatch.commands.export import export
from selfpatch.commands.pretrain import pretrain
from selfpatch.config import BackboneConfig
from selfpatch.demo.scenes import write_scenes
from selfpatch.export.formats import FORMATS as FORMATS_OF_EXPORT
from selfpatch.output.metric_logger import read_metrics
from tests.small_models import tiny_config

# With a class token and a norm of its own, as transformers and DINO's program know them.
PLAIN = BackboneConfig(
    name="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, class_token=True, final_norm=True
)
SETTINGS = {"efficiency.num_workers": 0, "evaluate.image_size": 48, "evaluate.every_steps": 100}
FORMATS = {"timm": "backbone.safetensors", "hf": "model.safetensors", "dino": "checkpoint.pth"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=12, num_train=4, num_val=3, size=48, seed=0)
    return folder


def configs():
    """The demo's kind of model, whose final norm is the aggregator's; and the kind that others know."""
    return {"SelfPatch's": tiny_config(), "DINO's": tiny_config(backbone=PLAIN)}


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory) -> dict[str, Path]:
    """A few steps each, at a learning rate at which they move."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in configs().items():
        changes = SETTINGS | {"evaluate.data": str(scenes / "ade20k"), "optim.steps": 4, "optim.lr": 1e-2}
        pretrain(scenes / "images", folder / name, config=config, settings=changes)
    return {name: folder / name for name in configs()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", configs())
def test_a_run_continued_from_an_export_starts_where_the_other_ended(kind, format, runs, scenes, tmp_path):
    """Tokens equal to 1e-5, score to 0.1 mIoU."""
    export(runs[kind], tmp_path / "exported", format=format)
    model = tmp_path / "exported" / (FORMATS[format] if format == "dino" else "")
    ended = read_metrics(runs[kind] / "metrics.jsonl")[-1]
    assert ended["step"] == 4
    config = tiny_config(backbone=BackboneConfig(**vars(configs()[kind].backbone) | {"final_norm": True}))
    changes = SETTINGS | {"evaluate.data": str(scenes / "ade20k"), "optim.steps": 1}
    pretrain(scenes / "images", tmp_path / "run", config=config, settings=changes, init_from=model)
    begun = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert begun["step"] == 0
    assert abs(begun["in_context/mIoU"] - ended["in_context/mIoU"]) < 0.001

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_backbone(runs[kind])(images).patch_tokens
        for found in (load_backbone(model, num_heads=2), load_backbone(f"{tmp_path / 'run'}@step-0")):
            torch.testing.assert_close(found(images).patch_tokens, expected, rtol=1e-5, atol=1e-5)


def test_both_programs_of_dino_find_their_names(runs, tmp_path):
    """Their way: of one key, without "module." and "backbone."; SelfPatch's norm is its aggregator's."""
    for kind, norm in (("DINO's", "norm.weight"), ("SelfPatch's", "ca_head.norm.weight")):
        export(runs[kind], tmp_path / f"{norm}.pth", format="dino")
        content = torch.load(tmp_path / f"{norm}.pth", weights_only=True)
        expected = load_backbone(runs[kind]).model.state_dict()
        for key in ("teacher", "student"):
            state = {name.replace("module.", "").replace("backbone.", ""): t for name, t in content[key].items()}
            assert state.keys() == {norm if name == "norm.weight" else name for name in expected} - {"norm.bias"} | {
                norm.replace("weight", "bias")
            }
            assert torch.equal(state[norm], expected["norm.weight"])


def test_a_folder_gets_a_card(runs, tmp_path, capsys):
    run = runs["DINO's"]
    assert main(["export", f"{run}@last", str(tmp_path / "model"), "--format", "hf"]) == 0
    shown = capsys.readouterr().out
    assert f"AutoModel.from_pretrained('{tmp_path / 'model'}')" in shown
    card = (tmp_path / "model" / "README.md").read_text()
    scores = {
        line["step"]: line["in_context/mIoU"]
        for line in read_metrics(run / "metrics.jsonl")
        if "in_context/mIoU" in line
    }
    for step in (0, 4):
        assert f"| {step} | in_context/mIoU | {100 * scores[step]:.1f} |" in card
    assert "12 unlabeled images, 4 steps" in card and "AutoModel.from_pretrained('model')" in card
    assert str(tmp_path) not in card and str(run.parent) not in card
    assert "embed_dim: 32" in card and "[0.485, 0.456, 0.406]" in card and "## License" in card

    (tmp_path / "model" / "README.md").write_text("my own words")
    export(run, tmp_path / "model", format="timm")
    assert (tmp_path / "model" / "README.md").read_text() == "my own words"
    assert "is your own" in capsys.readouterr().out


def test_a_file_gets_no_card(runs, tmp_path):
    export(runs["DINO's"], tmp_path / "mine.pth", format="dino")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.pth"]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "file"), [("onnx", "backbone.onnx"), ("torch-export", "backbone.pt2")])
def test_graphs_from_the_command_line(format, file, runs, tmp_path, capsys):
    assert main(["export", str(runs["SelfPatch's"]), str(tmp_path), "--format", format]) == 0
    assert str(tmp_path / file) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["README.md", file])


def test_the_command_line_offers_every_format():
    assert get_args(get_type_hints(Export)["format"]) == tuple(FORMATS_OF_EXPORT)


@pytest.mark.parametrize(
    ("model", "out", "format", "says"),
    [
        ("timm:vit_small_patch16_dinov3", "out", "dino", "timm's Eva.*choose another format"),
        ("timm:swin_tiny_patch4_window7_224", "out", "dino", "SwinTransformer.*choose another format"),
        ("timm:vit_tiny_patch16_224", "out.onnx", "timm", "ends in .onnx, as files of --format onnx"),
        ("timm:vit_tiny_patch16_224", "out.pth", "hf", "ends in .pth, as files of --format dino"),
        ("timm:vit_tiny_patch16_224", "out", "tflite", "torch-export"),
    ],
)
def test_an_export_that_the_format_cannot_express(model, out, format, says, tmp_path, capsys):
    assert main(["export", model, str(tmp_path / out), "--format", format]) == 2
    captured = capsys.readouterr()
    assert re.search(says, " ".join((captured.err + captured.out).split()))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
