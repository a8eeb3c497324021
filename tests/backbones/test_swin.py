import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from selfpatch import cli
from selfpatch.backbones.build import create_timm
from selfpatch.backbones.pretrained import load_backbone, load_weights
from selfpatch.backbones.swin import Swin
from selfpatch.commands.embed import embed
from selfpatch.config import AggregatorConfig
from selfpatch.export import export_timm
from selfpatch.objectives.encoder import Encoder
from tests.backbones.small_swin import ARGUMENTS, NAME, small_swin
from tests.backbones.small_vits import small_vit
from tests.backbones.test_stages import plain_norm
from tests.refusals import Refused

SIZES = [(32, 32), (32, 48), (40, 24), (8, 72)]  # with and without whole windows


def images(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_the_last_stage_through_the_norm(size):
    backbone, x = small_swin(), images(size)
    with torch.no_grad():
        tokens = backbone(x)
        plain = backbone.model.forward_features(x)  # [B, R, S, D]
        (last,) = backbone.forward_intermediates(x, [-1])
    assert tokens.cls_token is None and tokens.grid_size == (size[0] // 8, size[1] // 8)
    assert torch.equal(tokens.patch_tokens, plain.flatten(1, 2))
    through_norm = plain_norm(last.flatten(2).transpose(1, 2), backbone.model.norm)
    torch.testing.assert_close(through_norm, tokens.patch_tokens, rtol=1e-5, atol=1e-5)


def test_at_its_own_size_it_is_what_plain_timm_builds():
    """Windows are of the size that it was made with, whatever the image."""
    backbone = small_swin()
    plain = create_timm(NAME, **ARGUMENTS).eval()
    plain.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        expected = plain.forward_features(images((32, 32))).flatten(1, 2)
        ours = backbone(images((32, 32))).patch_tokens
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    shifts = [block.shift_size for layer in backbone.model.layers for block in layer.blocks]
    assert shifts == [(0, 0), (0, 0), (0, 0)]
    backbone(images((32, 40)))
    assert [block.shift_size for block in backbone.model.layers[1].blocks] == [(0, 0), (0, 2)]
    assert {block.window_size for layer in backbone.model.layers for block in layer.blocks} == {(4, 4)}


@pytest.mark.parametrize("size", SIZES)
def test_maps_are_those_that_timm_gives(size):
    backbone, x = small_swin(), images(size)
    assert backbone.stages == [(12, (4, 4)), (24, (8, 8))]
    assert (backbone.embed_dim, backbone.patch_size) == (24, (8, 8))
    with torch.no_grad():
        maps = backbone.forward_intermediates(x, [1, 0])
        expected = backbone.model.forward_intermediates(
            x, indices=2, norm=False, output_fmt="NCHW", intermediates_only=True
        )
    for ours, stage in zip(maps, (1, 0), strict=True):
        channels, (rows, columns) = backbone.stages[stage]
        assert ours.shape == (2, channels, size[0] // rows, size[1] // columns)
        torch.testing.assert_close(ours, expected[stage], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_keys_are_those_of_the_last_attention(size):
    """The middle third of the projection of what enters it, place by place."""
    backbone, x = small_swin(), images(size)
    model = backbone.model
    with torch.no_grad():
        keys = backbone.last_attention_keys(x)
        last_stage = model.layers[1]
        before = last_stage.blocks[0](last_stage.downsample(model.layers[0](model.patch_embed(x))))  # [B, R, S, D]
    block = last_stage.blocks[1]
    entering = plain_norm(before, block.norm1)
    for r, s in ((0, 0), (size[0] // 8 - 1, size[1] // 8 - 1)):
        for d in (0, 11, 23):
            expected = (block.attn.qkv.weight[24 + d] * entering[1, r, s]).sum() + block.attn.qkv.bias[24 + d]
            torch.testing.assert_close(keys[1, d, r, s], expected, rtol=1e-4, atol=1e-5)
    assert keys.shape == (2, 24, size[0] // 8, size[1] // 8)


def test_nothing_stays_hooked():
    backbone = small_swin()
    backbone.forward_intermediates(images((16, 16)), [0, 1])
    backbone.last_attention_keys(images((16, 16)))
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("size", [(36, 32), (32, 4), (30, 30)])
def test_sizes_that_do_not_fit(size):
    backbone, x = small_swin(), images(size)
    for call in (backbone, lambda x: backbone.forward_intermediates(x, [0]), backbone.last_attention_keys):
        with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels has no whole number of places of 8 x 8"):
            call(x)


def test_stochastic_depth_rises_with_the_block_over_all_stages():
    backbone = small_swin()
    backbone.set_drop_path(0.4)
    blocks = [block for layer in backbone.model.layers for block in layer.blocks]
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.2, 0.4])
    assert isinstance(blocks[0].drop_path1, nn.Identity)


# What is loaded, and what is refused


def test_random_weights_are_always_the_same_and_said():
    first, second = load_backbone(f"timm:{NAME}"), load_backbone(f"timm:{NAME}")
    assert isinstance(first, Swin) and not first.training
    assert torch.equal(first.model.layers[0].blocks[0].mlp.fc1.weight, second.model.layers[0].blocks[0].mlp.fc1.weight)
    assert first.notes[0].startswith("random initialisation") and f"timm:{NAME}.ms_in1k" in first.notes[0]
    assert first.stages[-1] == (768, (32, 32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tny_patch4_window7_224", "unknown backbone 'swin_tny_.*Nearest: swin_tiny_patch4_window7_224"),
        (f"{NAME}.nobody", f"timm has no weights 'nobody' of {NAME}; it has: {NAME}"),
        ("swinv2_tiny_window8_256", "swinv2_tiny_window8_256"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(f"timm:{name}")


def test_another_version_of_swin():
    with pytest.raises(
        ValueError, match="is a SwinTransformerV2; backbones are .* Swin transformers of the first version"
    ):
        create_timm("swinv2_tiny_window8_256")


def test_settings_of_plain_transformers_are_refused():
    for setting in ({"num_heads": 3}, {"pos_embed_interpolation": "offset"}):
        with pytest.raises(ValueError, match=f"timm:{NAME} has attention heads by stage and no position embeddings"):
            load_backbone(f"timm:{NAME}", **setting)


def test_weights_for_a_plain_transformer():
    with pytest.raises(
        ValueError, match=f"timm:{NAME} is a Swin transformer, and the backbone to start a plain vision"
    ):
        load_weights(small_vit("class token"), f"timm:{NAME}")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((64, 96, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_commands_take_it_as_they_take_a_plain_transformer(photos, capsys, tmp_path):
    export_timm(small_swin(), tmp_path / "small.safetensors")
    assert cli.main(["export", str(tmp_path / "small.safetensors"), str(tmp_path / "again")]) == 0
    assert "strict_img_size=False" in capsys.readouterr().out
    assert isinstance(load_backbone(tmp_path / "again"), Swin)
    pictures = tmp_path / "pictures"
    assert cli.main(["visualize", str(tmp_path / "again"), str(photos), str(pictures), "--device", "cpu"]) == 0
    assert "attention.png is left out: swin_tiny_patch4_window7_224 has no class token" in capsys.readouterr().out
    assert sorted(path.name for path in pictures.iterdir()) == ["pca.png", "positives.png", "similarity.png"]


def test_pretraining_command(photos, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["pretrain", str(photos), str(out), "--recipe", "dino-selfpatch-small", "--backbone.final-norm"]
    settings = {
        "backbone.name": NAME, "backbone.embed-dim": 12, "crops.global-size": 96, "crops.local-size": 64,
        "crops.num-local": 1, "crops.mean": (0.4, 0.5, 0.6), "crops.std": (0.2, 0.2, 0.2), "optim.batch-size": 2,
        "optim.steps": 2, "optim.warmup-epochs": 0, "objectives.dino.head.num-prototypes": 32,
        "objectives.selfpatch.head.num-prototypes": 32, "objectives.dino.head.hidden-dim": 32,
        "objectives.selfpatch.head.hidden-dim": 32, "run.device": "cpu", "efficiency.num-workers": 0,
    }  # fmt: skip
    for name, value in settings.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    backbone = load_backbone(out)
    assert isinstance(backbone, Swin) and backbone.embed_dim == 96
    assert (backbone.mean, backbone.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    assert (out / "pictures" / "positives.png").is_file()


def test_weights_of_it_for_a_plain_transformer(photos, capsys, tmp_path):
    arguments = ["pretrain", photos, tmp_path / "out", "--init-from", f"timm:{NAME}"]
    arguments += ["--run.device", "cpu", "--optim.batch-size", 2]
    Refused(capsys)(
        arguments,
        f"timm:{NAME} is a Swin transformer, and the backbone to start .* --backbone.name {NAME}",
        out=tmp_path / "out",
    )


def test_embedding_takes_the_mean_of_its_places(photos, tmp_path):
    assert embed(f"timm:{NAME}", photos, tmp_path / "out", image_size=64, device="cpu", dtype="float32") == 3
    description = json.loads((tmp_path / "out/embeddings.json").read_text())
    assert (description["vector"], description["dim"]) == ("mean of patch tokens", 768)
    assert np.load(tmp_path / "out/embeddings.npy").shape == (3, 768)
    assert (
        cli.main(["embed", f"timm:{NAME}", str(photos), str(tmp_path / "x"), "--num-heads", "3", "--device", "cpu"])
        == 2
    )


def test_its_image_token_is_the_mean_and_its_norm_may_be_that_of_an_aggregator(tmp_path):
    x = images((32, 32))
    backbone = small_swin()
    tokens, image_token, _ = Encoder(backbone)(x)
    torch.testing.assert_close(image_token, tokens.patch_tokens.mean(dim=1))
    backbone.final_norm = torch.nn.Identity()
    with pytest.raises(ValueError, match="backbone.final-norm is False.* always ends in a norm.* use an aggregator"):
        Encoder(backbone)
    encoder = Encoder(backbone, AggregatorConfig(num_blocks=1))
    export_timm(encoder.export_backbone(), tmp_path / "swin.safetensors")
    loaded = load_backbone(tmp_path / "swin.safetensors")
    assert loaded.final_norm_from_aggregator
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).patch_tokens, encoder.norm(backbone(x).patch_tokens))
        torch.testing.assert_close(loaded.pre_norm_tokens(x).patch_tokens, backbone(x).patch_tokens)
