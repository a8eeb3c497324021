import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from selfpatch.backbones.backbone import Tokens
from selfpatch.evaluation.classification import image_vectors
from selfpatch.evaluation.classification.image_vectors import (
    choose_vector,
    encode,
    has_class_token,
    image_vector,
    resize_and_center_crop,
)
from selfpatch.evaluation.features import eval_mode
from tests.evaluation.labeled_scenes import ColorBackbone


@pytest.mark.parametrize("shape", [(40, 61), (90, 33), (20, 20)])
def test_the_middle_is_that_of_torchvisions_pipeline(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    pipeline = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop((28, 24))])
    assert np.array_equal(resize_and_center_crop(image, 32, (28, 24)), np.array(pipeline(Image.fromarray(image))))


def test_vectors_of_tokens():
    tokens = Tokens(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0], [5.0, 8.0]]]), (1, 2))
    assert image_vector(tokens, "class_token").tolist() == [[1, 2]]
    assert image_vector(tokens, "mean").tolist() == [[4, 6]]
    assert image_vector(tokens, "class_token_and_mean").tolist() == [[1, 2, 4, 6]]


def test_auto_takes_the_class_token_where_there_is_one():
    assert choose_vector("auto", has_class_token=True) == "class_token"
    assert choose_vector("auto", has_class_token=False) == "mean"
    assert choose_vector("mean", has_class_token=True) == "mean"
    with pytest.raises(
        ValueError, match="vector is class_token_and_mean, but this model has no class token; choose mean"
    ):
        choose_vector("class_token_and_mean", has_class_token=False)


class WithClassToken(ColorBackbone):
    def forward(self, images):
        tokens = super().forward(images.half())
        return tokens._replace(cls_token=tokens.patch_tokens[:, 0])


def test_tokens_are_float32_whatever_the_model_gives():
    with eval_mode(backbone := WithClassToken()), torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = encode(backbone, torch.full((1, 8, 16, 3), 255, dtype=torch.uint8))
        assert has_class_token(backbone, (8, 8), torch.device("cpu"))
    assert tokens.cls_token.dtype == tokens.patch_tokens.dtype == torch.float32
    assert tokens.patch_tokens.flatten().tolist() == [1] * 6
    assert not has_class_token(ColorBackbone(), (8, 8), torch.device("cpu"))


@pytest.mark.parametrize("backbone", [WithClassToken(), ColorBackbone()])
def test_a_large_batch_is_encoded_in_parts(backbone, monkeypatch):
    pixels = torch.randint(0, 256, (7, 8, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = []
    backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    with eval_mode(backbone):
        whole = encode(backbone, pixels)
        monkeypatch.setattr(image_vectors, "ENCODED_AT_ONCE", 3)
        in_parts = encode(backbone, pixels)
    assert sizes == [7, 3, 3, 1]
    assert torch.equal(in_parts.patch_tokens, whole.patch_tokens) and in_parts.grid_size == (1, 2)
    assert (in_parts.cls_token is None) == (whole.cls_token is None)
    if whole.cls_token is not None:
        assert torch.equal(in_parts.cls_token, whole.cls_token)
