"""What is wrong with labelled images, through the command line: one paragraph that names the file, and nothing written."""

import json
import shutil

import numpy as np
import pytest
import torch

from selfpatch import cli
from selfpatch.export import export_timm
from tests.backbones.small_vits import small_vit
from tests.evaluation.datasets.segmentation_layouts import (
    PIXELS,
    mask_of,
    save,
    write_ade20k,
    write_cityscapes,
    write_list,
    write_plain,
    write_voc,
)
from tests.refusals import Refused

LAYOUTS = {"voc": write_voc, "cityscapes": write_cityscapes, "ade20k": write_ade20k, "plain": write_plain}
# The mask that is spoilt, and its image.
ONE_OF = {
    "voc": ("SegmentationClass/2007_000003.png", "JPEGImages/2007_000003.jpg"),
    "cityscapes": (
        "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
    ),
    "ade20k": ("annotations/training/ADE_training_1.png", "images/training/ADE_training_1.jpg"),
    "plain": ("masks/photo-2.png", "images/photo-2.jpg"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "backbone.safetensors"
    export_timm(small_vit("class token"), file)
    return file


@pytest.fixture
def data_refused(capsys, model, tmp_path):
    def check(data, *patterns):
        arguments = [
            "evaluate",
            model,
            "--data",
            data,
            "--out",
            tmp_path / "out",
            "--device",
            "cpu",
            "--preset",
            "quick",
        ]
        return Refused(capsys)(arguments, *patterns, out=tmp_path / "out")

    return check


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda mask, image: save(mask, mask_of(0, 1).T.copy()), r"1 of \d masks differ from their images in size .* 6 x 4, its mask 4 x 6"),
        (lambda mask, image: save(mask, np.full((4, 6), 500, np.uint16)), "has a pixel labelled 500; classes go up to 254"),
        (lambda mask, image: save(mask, PIXELS), r"cannot be read: a color picture \(RGB\); a mask holds one number per pixel"),
        (lambda mask, image: mask.write_bytes(mask.read_bytes()[:45]), "the mask .* cannot be read: .*; replace it"),
        (lambda mask, image: image.write_bytes(b"no picture"), "the image .* cannot be read: not a JPEG.*; replace it"),
        (lambda mask, image: mask.unlink(), "have no mask|are not in .*SegmentationClass"),
        (lambda mask, image: image.unlink(), "have no image|are not in .*JPEGImages|has no CITY/NAME"),
    ],
    ids=["size", "16 bit", "color", "broken mask", "broken image", "no mask", "no image"],
)  # fmt: skip
def test_one_file(data_refused, tmp_path, layout, spoil, says):
    root = LAYOUTS[layout](tmp_path / "data")
    mask, image = (root / path for path in ONE_OF[layout])
    spoil(mask, image)
    data_refused(root, says)


@pytest.mark.parametrize("layout", ["voc", "cityscapes", "ade20k"])
def test_labels_out_of_range(data_refused, tmp_path, layout):
    root = LAYOUTS[layout](tmp_path / "data")
    save(root / ONE_OF[layout][0], mask_of(1, 200))
    data_refused(root, "has a pixel labelled 200, but ")


@pytest.mark.parametrize(
    ("layout", "part", "says"),
    [
        (
            "voc",
            "JPEGImages",
            "looks like Pascal VOC layout but has no JPEGImages .*Visual Object Classes Challenge 2012",
        ),
        ("voc", "SegmentationClass", "has no SegmentationClass .the masks.; it comes with VOCtrainval_11-May-2012.tar"),
        ("voc", "ImageSets", "no ImageSets.Segmentation.val.txt"),
        ("cityscapes", "gtFine", "looks like Cityscapes but has no gtFine.train .*'The Cityscapes Dataset'"),
        ("cityscapes", "leftImg8bit/train", "has no leftImg8bit.train .the train images."),
        ("ade20k", "annotations/validation", "there is no folder .*annotations.validation; the layouts are"),
        ("ade20k", "images", "holds annotations, .*; labelled images are expected in one of these layouts"),
        ("plain", "masks", "holds images; labelled images are expected in one of these layouts"),
    ],
)
def test_parts_that_are_missing(data_refused, tmp_path, layout, part, says):
    root = LAYOUTS[layout](tmp_path / "data")
    shutil.rmtree(root / part)
    data_refused(root, says)


def test_lists(data_refused, tmp_path):
    root = write_voc(tmp_path / "data")
    write_list(root / "ImageSets/Segmentation/val.txt", [])
    data_refused(root, "the list .*val.txt is empty")
    write_list(root / "ImageSets/Segmentation/val.txt", ["2007_000003", "2011_000000"])
    data_refused(root, "1 of 2 names in .*val.txt are not in .*JPEGImages: 2011_000000.jpg")


def test_notes_are_printed_and_kept(tmp_path, capsys):
    """Of the model, and of the data."""
    root, out, model = write_ade20k(tmp_path / "data"), tmp_path / "out", tmp_path / "original.pth"
    torch.save(small_vit("class token").model.state_dict() | {"masked_embed": torch.zeros(1, 24)}, model)
    arguments = [
        "evaluate",
        model,
        "--data",
        root,
        "--out",
        out,
        "--device",
        "cpu",
        "--image-size",
        32,
        "--num-heads",
        3,
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    result = json.loads((out / "result.json").read_text())
    assert [note[:33] for note in result["notes"]] == [
        "30 of 30 tensors match",
        "read as iBOT",
        "left out, as no part of the encod",
        "training has 2 of the 20,210 imag",
        "validation has 2 of the 2,000 ima",
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert all(said.count(note) == 1 for note in result["notes"])
    assert "notes" not in result["protocol"]
