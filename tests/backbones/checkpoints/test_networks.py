"""Checkpoints that hold several networks: which is read, and how another is asked for."""

import re

import pytest
import torch

from selfpatch.backbones.checkpoints.networks import choose_network
from selfpatch.backbones.pretrained import load_backbone, load_vit, load_weights
from selfpatch.errors import UserError
from selfpatch.export import export_timm
from tests.backbones.checkpoints.layouts import encoder, prefixed, save
from tests.backbones.small_vits import small_vit

READ, OTHER = encoder(seed=1), encoder(seed=2)
# (the prefix to be read, the other one, whether it is the averaged network)
PAIRS = {
    "Lightly": ("state_dict.teacher_backbone.", "state_dict.student_backbone.", True),
    "Lightly, wrapped": ("state_dict.teacher_backbone.vit.", "state_dict.student_backbone.vit.", True),
    "LightlyTrain": (
        "state_dict.teacher_embedding_model.wrapped_model._model.",
        "state_dict.student_embedding_model.wrapped_model._model.",
        True,
    ),
    "DINO": ("teacher.backbone.", "student.module.backbone.", True),
    "DINOv2": ("model.teacher.backbone.", "model.student.backbone.", True),
    "timm": ("state_dict_ema.", "state_dict.", True),
    "DeiT": ("model_ema.", "model.", True),
    "module and ema": ("ema.", "module.", True),
    "ema_model": ("ema_model.", "model.", True),
    "I-JEPA": ("target_encoder.module.", "encoder.module.", True),
    "MoCo-v3": ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder.", False),
    "MoCo": ("state_dict.module.encoder_q.", "state_dict.module.encoder_k.", False),
    "MoBY": ("model.encoder.", "model.encoder_k.", False),
    "BYOL": ("online_network.", "target_network.", False),
    "BYOL, plain": ("online.", "target.", False),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("is_first", [True, False])
def test_network_that_its_authors_evaluate(name, is_first, tmp_path):
    """With names in one dictionary; the order in the file does not matter."""
    prefix, other, is_averaged = PAIRS[name]
    parts = [prefixed(prefix, READ), prefixed(other, OTHER)]
    path = save(tmp_path / "model.pth", {**parts[not is_first], **parts[is_first]})
    backbone = load_backbone(path, num_heads=3)
    assert torch.equal(backbone.model.norm.bias, READ["norm.bias"])
    (note,) = [note for note in backbone.notes if "of the checkpoint" in note]
    assert note.startswith(f"{prefix[:-1]} of the checkpoint: {'the' if is_averaged else 'not the'} averaged network")
    assert other[:-1] in note and "--network" in note
    asked = load_backbone(path, num_heads=3, network=other[:-1])
    assert torch.equal(asked.model.norm.bias, OTHER["norm.bias"])


@pytest.mark.parametrize(
    "prefixes",
    [
        ("first.", "second."),
        ("", "backbone."),
        ("student.", "model_ema."),
        ("visual_encoder.", "visual_encoder_m."),
    ],
)
def test_open_choice_is_asked(prefixes, tmp_path):
    content = {k: t for i, prefix in enumerate(prefixes) for k, t in prefixed(prefix, encoder(seed=i)).items()}
    path = save(tmp_path / "model.pth", content)
    names = ", ".join(prefix[:-1] or "(no prefix)" for prefix in prefixes)
    with pytest.raises(UserError, match=re.escape(f"{names}. Give one of these as the network (--network)")):
        load_backbone(path, num_heads=3)
    for i, prefix in enumerate(prefixes):
        backbone = load_backbone(path, num_heads=3, network=prefix)
        assert torch.equal(backbone.model.norm.bias, encoder(seed=i)["norm.bias"])


@pytest.mark.parametrize(
    ("network", "chosen"),
    [
        ("teacher", "model.teacher.backbone."),
        ("teacher.backbone", "model.teacher.backbone."),
        ("model.student.backbone", "model.student.backbone."),
    ],
)
def test_part_of_a_prefix_is_enough(network, chosen, tmp_path):
    prefixes = ["model.student.backbone.", "model.teacher.backbone."]
    assert choose_network(tmp_path, prefixes, network)[0] == chosen


@pytest.mark.parametrize("network", ["backbone", "teach", "nobody", "."])
def test_unknown_or_shared_part_is_refused(network, tmp_path):
    with pytest.raises(UserError, match=r"its networks are: model.student.backbone, model.teacher.backbone"):
        choose_network(tmp_path, ["model.student.backbone.", "model.teacher.backbone."], network)


def test_empty_siblings_do_not_count(tmp_path):
    path = save(tmp_path / "model.pth", {"student": {}, "teacher": READ})
    assert "teacher of the checkpoint" in load_backbone(path, num_heads=3).notes


def test_models_of_one_network_take_no_choice(tmp_path):
    export_timm(small_vit("class token"), tmp_path / "backbone.safetensors")
    for model in (tmp_path, "timm:vit_tiny_patch16_224"):
        with pytest.raises(UserError, match="one network; leave out network"):
            load_backbone(model, network="teacher")


def test_other_loaders_pass_it_on(tmp_path):
    path = save(tmp_path / "model.pth", {"a": READ, "b": OTHER})
    assert torch.equal(load_vit(path, num_heads=3, network="b").model.norm.bias, OTHER["norm.bias"])
    target = small_vit("class token")
    load_weights(target, path, num_heads=3, network="b")
    assert torch.equal(target.model.norm.bias, OTHER["norm.bias"])
