import json

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.evaluation.discovery.lost import find_object
from selfpatch.evaluation.discovery.object_discovery import in_pixels, padded, run, whole_image_notes
from selfpatch.evaluation.protocols import protocol_name
from selfpatch.evaluation.protocols.object_discovery import ObjectDiscovery
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task
from tests.evaluation.boxed_scenes import ContrastBackbone, annotation, write_plain, write_voc
from tests.reference import plain_lost as plain

# 1. LOST


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_candidates", [1, 5, 100])
def test_equals_a_restatement_with_loops(seed, num_candidates):
    rng = np.random.default_rng(seed)
    rows, columns = 5, 8
    vectors = rng.standard_normal((rows * columns, 3 + seed)).astype(np.float32)
    # Neighbours are alike, so that there are components of some size.
    vectors = np.concatenate([vectors[:-1] + vectors[1:], vectors[-1:]])
    found = find_object(torch.from_numpy(vectors.T.reshape(-1, rows, columns).copy()), num_candidates=num_candidates)
    degrees, patch, box = plain.find_object(vectors.astype(np.float64), rows, columns, num_candidates)
    assert found.degree.ravel().tolist() == degrees
    assert found.seed == divmod(patch, columns)
    assert found.box == box


def test_a_corner_does_not_connect_and_zeros_are_a_box_of_one_patch():
    features = -torch.ones(1, 3, 4)
    features[0, 0, 0] = features[0, 1, 1] = 1.0
    assert find_object(features, num_candidates=100).box == (0, 0, 1, 1)
    features[0, 0, 1] = 1.0
    assert find_object(features, num_candidates=100).box == (0, 0, 2, 2)
    nothing = find_object(torch.zeros(2, 3, 4), num_candidates=100)
    assert (nothing.box, nothing.seed) == ((0, 0, 1, 1), (0, 0)) and not nothing.degree.any()


def test_a_made_map_of_a_known_box():
    """Background b = (1, 0), an object of 2 x 2 patches o = (-0.2, 1), and one patch between them, m = (1, 1).

    b.b = 1, o.o = 1.04, b.o = -0.2, m.b = 1, m.o = 0.8: degrees are 14 + 1 for b, 3 + 1 for o and 19 for m, so that the
    first patch of the object is the seed. Among the four patches of lowest degree are those of the object alone, whose
    sums with o and m are positive and with b -0.8. Among all patches m is a candidate too, and the sum with b is 0.2.
    """
    features = torch.zeros(2, 4, 5)
    features[0] = 1.0
    features[:, 1:3, 2:4] = torch.tensor([-0.2, 1.0])[:, None, None]
    features[:, 1, 4] = 1.0
    found = find_object(features, num_candidates=4)
    assert (found.seed, found.box) == ((1, 2), (2, 1, 5, 3))
    assert found.degree.tolist() == [[15] * 5, [15, 15, 4, 4, 19], [15, 15, 4, 4, 15], [15] * 5]
    assert find_object(features, num_candidates=100).box == (0, 0, 5, 4)
    # Alone, and out of reach of a like patch in the corner.
    features[:, 1, 4] = torch.tensor([1.0, 0.0])
    features[:, 3, 0] = torch.tensor([-0.2, 1.0])
    found = find_object(features, num_candidates=100)
    assert (found.seed, found.box) == ((1, 2), (2, 1, 4, 3))


# 2. From patches to pixels


def test_images_are_padded_to_whole_patches_and_boxes_are_cut_off_there():
    image = torch.ones(1, 3, 17, 32)
    whole = padded(image, (8, 16))
    assert whole.shape == (1, 3, 24, 32)
    assert torch.equal(whole[:, :, :17], image) and not whole[:, :, 17:].any()
    assert in_pixels((0, 1, 2, 3), (8, 16), (17, 32), (17, 32)) == (0, 8, 32, 17)
    # Resized to half its width and a third of its height.
    assert in_pixels((1, 1, 2, 3), (8, 16), (17, 32), (51, 64)) == (32, 24, 64, 51)


# 3. The whole


class Blind(ContrastBackbone):
    def last_attention_keys(self, images):
        return torch.ones_like(super().last_attention_keys(images))


def discover(root, out, backbone=None, report=lambda *_: None, **settings):
    return run(backbone or ContrastBackbone(), root, ObjectDiscovery(**settings), EvalContext(out, report=report))


def test_a_split_that_is_named_is_the_same_protocol_as_one_that_is_found(tmp_path):
    root = write_voc(tmp_path / "data")
    found, named, other = (discover(root, tmp_path, split=split).dataset_info for split in (None, "trainval", "train"))
    assert found == named != other
    assert protocol_name("object-discovery", ObjectDiscovery(split="trainval")) == "lost"


def test_finds_what_stands_out_and_a_blind_backbone_does_not(tmp_path):
    root = write_voc(tmp_path / "data", count=6)
    calls = []
    outcome = discover(root, tmp_path, report=lambda *call: calls.append(call))
    assert outcome.metrics == {"CorLoc": 1.0}
    assert calls[-6:] == [(i, 6) for i in range(1, 7)]
    with Image.open(tmp_path / "pictures/objects.png") as picture:
        assert min(picture.size) > 600
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    assert list(boxes) == [f"JPEGImages/00000{i}.jpg" for i in range(6)]
    assert (
        annotation([[int(x) for x in boxes["JPEGImages/000003.jpg"]]]) == (root / "Annotations/000003.xml").read_text()
    )
    assert discover(root, tmp_path, features="tokens", max_images=3).metrics == {"CorLoc": 1.0}
    assert discover(root, tmp_path, Blind()).metrics["CorLoc"] < 0.5


class Positive(ContrastBackbone):
    """Keys as DINOv2's: with one large component in common."""

    def last_attention_keys(self, images):
        keys = super().last_attention_keys(images)
        return torch.cat([keys, torch.full_like(keys[:, :1], 10.0)], dim=1)


def test_says_so_when_boxes_are_whole_images_and_names_the_other_features(tmp_path):
    root = write_voc(tmp_path / "data", count=6)
    context = EvalContext(tmp_path / "out")
    result = run_task("object-discovery", Positive(), root, ObjectDiscovery(), context)
    assert result.details["num_boxes_of_whole_images"] == 6
    (note,) = result.notes
    assert note.startswith("every box is the whole image") and note.endswith("try the tokens (--features tokens)")
    assert json.loads((tmp_path / "out/result.json").read_text())["notes"] == [note]
    result = run_task("object-discovery", Positive(), root, ObjectDiscovery(features="tokens"), context)
    assert result.notes == []
    result = run_task("object-discovery", ContrastBackbone(), root, ObjectDiscovery(), context)
    assert (result.metrics["CorLoc"], result.notes, result.details["num_boxes_of_whole_images"]) == (1.0, [], 0)
    (note,) = whole_image_notes(19, 20, ObjectDiscovery(features="tokens"))
    assert note.startswith("19 of 20 boxes are the whole image") and note.endswith("(--features keys)")
    assert whole_image_notes(17, 20, ObjectDiscovery()) == []


def test_counts_boxes_from_the_overlap_on(tmp_path):
    root = write_plain(tmp_path / "data", count=1)
    pixels = np.zeros((36, 44, 3), np.uint8)  # not whole patches
    pixels[8:24, 16:32] = 255
    Image.fromarray(pixels).save(root / "images/000000.jpg", quality=100)

    def score(boxes, **settings):
        (root / "annotations/000000.xml").write_text(annotation(boxes, (36, 44)))
        return discover(root, tmp_path, **settings).metrics["CorLoc"]

    half, less = (16, 8, 32, 16), (16, 8, 32, 15)
    assert plain.iou(half, (16, 8, 32, 24)) == 0.5
    assert score([half]) == 1 and score([less]) == 0 and score([less, half]) == 1
    assert score([half], min_iou=0.6) == 0
    # Twice the size: found there, and scaled back.
    assert score([(16, 8, 32, 24)], image_size=72, min_iou=0.9) == 1


def test_refuses_images_with_too_many_patches_before_anything_is_written(tmp_path):
    root = write_plain(tmp_path / "data", count=1)
    with pytest.raises(
        ValueError, match="has 1000 x 1400 patches at 11200 x 8000 pixels, more than the 32768 of which"
    ):
        discover(root, tmp_path / "out", image_size=8000)
    assert not (tmp_path / "out").exists()
