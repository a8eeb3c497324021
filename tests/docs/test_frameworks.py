"""The code of docs/frameworks.md and docs/embeddings.md, as it stands there, with tiny models."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import resnet18

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.embed import embed
from selfpatch.export import export_timm
from tests.small_models import tiny_config, tiny_student_teacher

DOCS = Path(__file__).parents[2] / "docs"


def code_of(page: str, heading: str) -> str:
    section = (DOCS / page).read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return code


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Two blocks, 32 wide, patches of 8."""
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    export_timm(tiny_student_teacher(tiny_config()).teacher.export_backbone(), file)
    return str(file)


@pytest.fixture(scope="module")
def names() -> Callable:
    """What a section defines, with what those before it on the page do."""

    def run(*headings: str) -> dict:
        defined: dict = {}
        for heading in headings:
            exec(code_of("frameworks.md", heading), defined)
        return defined

    return run


def test_a_tuple_of_maps_for_decoders(model, names):
    backbone = names("mmsegmentation")["SelfPatchBackbone"](model, out_indices=(0, 0, 1, 1)).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = backbone(images)
    assert [tuple(one.shape) for one in maps] == [(2, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert backbone.out_channels == [32] * 4
    own = load_backbone(model).forward_intermediates(images, [0])[0]  # stride 8, as the second map
    torch.testing.assert_close(maps[1], own)
    sum(one.sum() for one in maps).backward()
    assert all(parameter.grad is not None for name, parameter in backbone.named_parameters() if "blocks" in name)


def test_a_detector_of_torchvision(model, names):
    """Trains a step and predicts; its input is what torchvision's own getter of layers returns."""
    defined = names("mmsegmentation", "torchvision")
    torch.manual_seed(0)
    detector = defined["build_detector"](model, 3, out_indices=(0, 0, 1, 1), min_size=64, max_size=96)
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 64, 80, dtype=torch.uint8).index_fill_(1, torch.arange(4, 40), 1),
    }  # fmt: skip
    losses = detector([torch.rand(3, 64, 80)], [target])
    assert len(losses) == 5 and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert next(detector.backbone.body.backbone.parameters()).grad is not None
    with torch.no_grad():
        (found,) = detector.eval()([torch.rand(3, 64, 80)])
    assert {"boxes", "labels", "scores", "masks"} <= found.keys()
    getter = IntermediateLayerGetter(resnet18(), {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"})
    theirs, own = (body(torch.zeros(1, 3, 64, 96)) for body in (getter, detector.backbone))
    assert list(theirs) == list(own) and type(theirs) is type(own)
    assert [one.shape[2:] for one in theirs.values()] == [one.shape[2:] for one in own.values()]


@pytest.mark.filterwarnings("ignore")  # of its own
def test_a_module_of_lightning(model, names):
    lightning = pytest.importorskip("lightning")
    defined = names("mmsegmentation", "Lightning")
    torch.manual_seed(0)
    segmenter = defined["Segmenter"](model, num_classes=4)
    pairs = [(torch.randn(3, 32, 48), torch.randint(0, 4, (32, 48))) for _ in range(4)]
    before = segmenter.backbone.model.blocks[0].mlp.fc1.weight.detach().clone()
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(segmenter, torch.utils.data.DataLoader(pairs, batch_size=2))
    assert not torch.equal(before, segmenter.backbone.model.blocks[0].mlp.fc1.weight)
    assert segmenter(torch.randn(1, 3, 32, 48)).shape == (1, 4, 32, 48)


def test_tokens_of_an_image_by_the_index(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for index, size in enumerate([(40, 24), (24, 24)]):
        Image.fromarray(np.full((*size, 3), 80 * index, np.uint8)).save(f"images/{index}.png")
    settings = {"level": "patch", "image_size": 24, "device": "cpu"}
    embed(model, "images", "FEATURES", format="zarr", **settings)
    embed(model, "images", "plain", **settings)
    defined: dict = {}
    page = (DOCS / "embeddings.md").read_text()
    exec(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0], defined)
    np.testing.assert_allclose(defined["tokens"], np.load("plain/patches/0.png.npy"))
