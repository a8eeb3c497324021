import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.evaluation.datasets.davis import Davis, Video, read_annotation, read_frame
from selfpatch.evaluation.protocols import TASKS
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.task import EvalContext
from selfpatch.evaluation.tasks import run_task
from selfpatch.evaluation.video import video_segmentation
from selfpatch.evaluation.video.video_pictures import FRAMES_PER_ANIMATION, PALETTE, evenly_spaced
from selfpatch.evaluation.video.video_segmentation import frame_size
from tests.backbones.small_vits import FAMILIES, small_vit
from tests.evaluation.moving_shapes import ColorStages, save_annotation, write_davis
from tests.reference import plain_davis, plain_label_propagation

SMALL = VideoSegmentation(image_size=48, long_side_multiple=8, radius=3)


def masks_of(out, video: str) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted((out / "masks" / video).iterdir())]


# 1. The whole against a restatement.


@pytest.mark.parametrize("size", [(48, 80), (90, 70), (50, 50)], ids=str)
def test_equals_a_restatement(tmp_path, size):
    root = write_davis(tmp_path / "data", num_frames=6, size=size, num_objects=3)
    protocol = VideoSegmentation(image_size=40, long_side_multiple=16, num_last_frames=2, radius=2, num_neighbors=4)
    backbone = ColorStages((8, 8))
    outcome = video_segmentation.run(backbone, root, protocol, EvalContext(tmp_path / "out"))

    objects = {}
    for video in Davis(root).videos:
        long_side = 40 * max(size) // min(size) // 16 * 16
        rows, columns = (long_side, 40) if size[0] > size[1] else (40, long_side)
        features = []
        for frame in video.frames:
            pixels = cv2.resize(read_frame(frame), (columns, rows)).astype(np.float32) / 255
            image = torch.from_numpy((pixels - protocol.mean) / protocol.std).permute(2, 0, 1)[None].float()
            (feature,) = backbone.eval().forward_intermediates(image, [-1])[0]
            features.append(feature)
        truths = [read_annotation(frame) for frame in video.frames]
        small = np.array(Image.fromarray(truths[0]).resize((columns // 8, rows // 8), Image.Resampling.NEAREST))
        first = torch.from_numpy(np.stack([small == label for label in range(4)])).float()
        masks = [truths[0]]
        for labels in plain_label_propagation.propagate(features, first, 2, 2, 4, 0.1):
            mask = plain_label_propagation.mask(labels, (8, 8)).numpy().astype(np.uint8)
            masks.append(np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)))
        for ours, theirs in zip(masks_of(tmp_path / "out", video.name), masks, strict=True):
            assert np.mean(ours != theirs) < 1e-3
        for i, scores in enumerate(plain_davis.score_video(truths, masks_of(tmp_path / "out", video.name)), start=1):
            objects[f"{video.name}_{i}"] = scores
    assert [name for name in outcome.metrics if "/" in name] == [f"J&F/{name}" for name in objects]
    assert set(outcome.lower_is_better) == {name for name in outcome.metrics if name.endswith("-Decay")}
    for name, (J, F) in objects.items():
        assert outcome.metrics[f"J&F/{name}"] == pytest.approx((np.mean(J) + np.mean(F)) / 2, abs=1e-9)
    for letter, of_frames in zip("JF", zip(*objects.values(), strict=True), strict=True):
        expected = np.mean([plain_davis.statistics(values) for values in of_frames], axis=0)
        found = [outcome.metrics[f"{letter}-{kind}"] for kind in ("Mean", "Recall", "Decay")]
        assert found == pytest.approx(expected.tolist(), abs=1e-9)
    assert outcome.metrics["J&F-Mean"] == (outcome.metrics["J-Mean"] + outcome.metrics["F-Mean"]) / 2


@pytest.mark.parametrize(
    ("preset", "norm", "normed"),
    [
        ("dino", "its own", True),
        ("dino", "the aggregator's", False),  # as SelfPatch's checkpoints are read
        ("dino", "none", True),
        ("selfpatch", "its own", False),
    ],
)
def test_dino_propagates_normed_patches_and_selfpatch_the_last_block(tmp_path, preset, norm, normed):
    root = write_davis(tmp_path / "data", videos=("ball",), num_frames=4, size=(48, 80), num_objects=3)
    protocol = replace(
        TASKS["video-segmentation"].presets[preset], image_size=48, long_side_multiple=8, radius=2, num_last_frames=2
    )
    backbone = small_vit("no final norm" if norm == "none" else "class token", patch_size=8)
    backbone.final_norm_from_aggregator = norm == "the aggregator's"
    output = video_segmentation.run(backbone, root, protocol, EvalContext(tmp_path / "out"))
    assert output.details == {"features": "output of the backbone" if normed else "last block, without a final norm"}

    (video,) = Davis(root).videos
    by_hand, other = [], []
    for frame in video.frames:
        pixels = cv2.resize(read_frame(frame), (80, 48)).astype(np.float32) / 255
        image = torch.from_numpy((pixels - protocol.mean) / protocol.std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            feature = backbone.forward_intermediates(image, [-1])[0][0]
            through_norm = (
                feature if norm == "none" else plain_label_propagation.layer_norm(feature, backbone.model.norm)
            )
        by_hand.append(through_norm if normed else feature)
        other.append(feature if normed else through_norm)
    truth = read_annotation(video.frames[0])
    small = np.array(Image.fromarray(truth).resize((10, 6), Image.Resampling.NEAREST))
    first = torch.from_numpy(np.stack([small == label for label in range(4)])).float()

    def masks(features):
        labels = plain_label_propagation.propagate(features, first, 2, 2, protocol.num_neighbors, 0.1)
        return np.stack([plain_label_propagation.mask(of_frame, (8, 8)).numpy() for of_frame in labels])

    found = np.stack(masks_of(tmp_path / "out", "ball")[1:])
    assert np.mean(found != masks(by_hand)) < 1e-3
    if norm != "none":
        assert np.mean(found != masks(other)) > 0.01


# 2. What a backbone is worth, and what must not matter.


def test_a_backbone_that_sees_colours_follows_objects_and_a_blind_one_does_not(tmp_path):
    class Blind(ColorStages):
        def forward(self, images):
            tokens = super().forward(images)
            return tokens._replace(patch_tokens=torch.ones_like(tokens.patch_tokens))

    root = write_davis(tmp_path / "data", num_frames=6, size=(96, 160))
    protocol = VideoSegmentation(image_size=96, long_side_multiple=8)
    seeing = video_segmentation.run(ColorStages((4, 4)), root, protocol, EvalContext(tmp_path / "seeing")).metrics
    blind = video_segmentation.run(Blind((4, 4)), root, protocol, EvalContext(tmp_path / "blind")).metrics
    assert seeing["J&F-Mean"] > 0.9
    assert seeing["J-Recall"] == seeing["F-Recall"] == 1
    assert blind["J&F-Mean"] < 0.5


def test_neither_batch_size_nor_the_mode_matter(tmp_path):
    root = write_davis(tmp_path / "data")
    backbone = ColorStages()
    expected = video_segmentation.run(backbone, root, SMALL, EvalContext(tmp_path / "a")).metrics
    assert backbone.training
    for batch_size in (1, 3, 100):
        protocol = VideoSegmentation(image_size=48, long_side_multiple=8, radius=3, batch_size=batch_size)
        assert video_segmentation.run(backbone, root, protocol, EvalContext(tmp_path / "b")).metrics == expected


def test_frames_are_normalised_with_the_protocols_numbers(tmp_path):
    seen = []

    class Watching(ColorStages):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    root = write_davis(tmp_path / "data", videos=("ball",), num_frames=3)
    video_segmentation.run(Watching(), root, SMALL, EvalContext(tmp_path / "out"))
    pixels = read_frame(Davis(root).videos[0].frames[0])
    expected = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.228, 0.224, 0.225)
    assert seen[0].shape == (3, 3, 48, 80)
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "Swin"])
def test_every_family_at_sizes_that_are_not_square(tmp_path, family):
    if family == "Swin":
        backbone = load_backbone("timm:swin_tiny_patch4_window7_224")
    else:
        backbone = small_vit(family)
    root = write_davis(tmp_path / "data", videos=("ball",), num_frames=3, size=(70, 130))
    protocol = VideoSegmentation(image_size=64, long_side_multiple=32)
    outcome = video_segmentation.run(backbone, root, protocol, EvalContext(tmp_path / "out"))
    assert 0 <= outcome.metrics["J&F-Mean"] <= 1
    assert [mask.shape for mask in masks_of(tmp_path / "out", "ball")] == [(70, 130)] * 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 854), (480, 832)),
        ((854, 480), (832, 480)),
        ((480, 910), (480, 896)),
        ((480, 480), (480, 448)),
        ((1080, 1920), (480, 832)),
        ((100, 300), (480, 1408)),
    ],
)
def test_frame_sizes(size, expected):
    """Of a square video the columns become the multiple of 64, as in the original."""
    assert frame_size(Video("a", [], size, 1), VideoSegmentation(), (16, 16)) == expected


def test_frames_smaller_than_a_patch_are_refused_before_anything_is_written(tmp_path):
    root = write_davis(tmp_path / "data")
    for settings, message in (
        (
            {"image_size": 30},
            r"image-size is 30 px, .* of ball 30 x 0 px .*less than one patch of 8 x 8; make image-size",
        ),
        ({"image_size": 4, "long_side_multiple": 1}, "less than one patch of 8 x 8"),
    ):
        with pytest.raises(ValueError, match=message):
            video_segmentation.run(ColorStages(), root, VideoSegmentation(**settings), EvalContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# 3. Objects that come and go, and many of them.


def test_an_object_that_appears_later_is_not_followed_and_one_that_is_nowhere_is_found_perfectly(tmp_path):
    root = write_davis(tmp_path / "data", videos=("ball",), num_objects=1)
    for t in range(5):
        path = root / f"Annotations/480p/ball/{t:05d}.png"
        labels = np.array(Image.open(path))
        labels[labels == 1] = 3  # objects 1 and 2 are nowhere in the first frame
        if t > 0:
            labels[:4, :4], labels[:4, -4:] = 2, 4
        save_annotation(path, labels)
    metrics = video_segmentation.run(ColorStages(), root, SMALL, EvalContext(tmp_path / "out")).metrics
    assert [name for name in metrics if "/" in name] == ["J&F/ball_1", "J&F/ball_2", "J&F/ball_3"]
    assert metrics["J&F/ball_1"] == 1
    assert metrics["J&F/ball_2"] == 0
    assert set(np.unique(masks_of(tmp_path / "out", "ball")[1:])) == {0, 3}


def test_254_objects(tmp_path):
    root = write_davis(tmp_path / "data", videos=("ball",), num_frames=3, num_objects=1)
    labels = (np.arange(16 * 16) % 255).reshape(16, 16).astype(np.uint8)
    labels = np.array(Image.fromarray(labels).resize((80, 48), Image.Resampling.NEAREST))
    for t in range(3):
        save_annotation(root / f"Annotations/480p/ball/{t:05d}.png", labels)
    outcome = video_segmentation.run(ColorStages(), root, SMALL, EvalContext(tmp_path / "out"))
    assert outcome.dataset_info["num_objects"] == 254
    assert len(outcome.metrics) == 7 + 254


# 4. What is written.


def test_a_run_writes_masks_scores_pictures_and_its_result(tmp_path):
    root, out = write_davis(tmp_path / "data", num_frames=6), tmp_path / "out"
    calls = []
    context = EvalContext(out, report=lambda *call: calls.append(call), model="colors")
    result = run_task("video-segmentation", ColorStages(), root, SMALL, context)
    assert calls == [(i, 12) for i in range(1, 13)]
    names = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    names += ["J&F/ball_1", "J&F/ball_2", "J&F/box_1", "J&F/box_2"]
    assert list(result.metrics) == names
    written = json.loads((out / "result.json").read_text())
    assert written["protocol"]["num_frames"] == 12
    assert written["protocol"]["std"] == [0.228, 0.224, 0.225]
    assert written["details"]["differs"] == list(SMALL.differs)
    assert sorted(path.name for path in out.iterdir()) == ["masks", "pictures", "result.json", "scores.json"]

    for video in Davis(root).videos:
        for t, frame in enumerate(video.frames):
            with Image.open(out / f"masks/{video.name}/{frame.image.stem}.png") as mask:
                assert (mask.mode, mask.size) == ("P", (80, 48))
                assert np.array(mask.getpalette())[: 3 * 3].tolist() == [0, 0, 0, 128, 0, 0, 0, 128, 0]
                if t == 0:
                    assert np.array(mask).tolist() == read_annotation(frame).tolist()
        with Image.open(out / f"pictures/{video.name}.gif") as animation:
            assert animation.n_frames == 6
            assert animation.size[0] >= 2 * 80
        with Image.open(out / f"pictures/{video.name}.png") as sheet:
            assert sheet.size[0] >= 2 * 80 and sheet.size[1] >= 6 * 48
    scores = json.loads((out / "scores.json").read_text())
    for name, objects in scores.items():
        for scored in objects:
            assert len(scored["J"]) == len(scored["F"]) == 4
            mean = (np.mean(scored["J"]) + np.mean(scored["F"])) / 2
            assert result.metrics[f"J&F/{name}_{scored['object']}"] == pytest.approx(mean)


def test_palette():
    """The first colours as DAVIS's annotations have them; no colour comes twice."""
    assert PALETTE[:10].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128],
        [64, 0, 0], [192, 0, 0],
    ]  # fmt: skip
    assert len(np.unique(PALETTE, axis=0)) == 256


def test_evenly_spaced_frames_hold_the_first_and_the_last():
    assert evenly_spaced(3, 6) == [0, 1, 2]
    assert evenly_spaced(11, 6) == [0, 2, 4, 6, 8, 10]
    assert evenly_spaced(104, FRAMES_PER_ANIMATION)[::39] == [0, 103]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image-size is 0; it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"num_last_frames": -1}, "num-last-frames is -1; it must be at least 0"),
        ({"radius": -1}, "radius is -1; it must be at least 0"),
        ({"std": (0.2, 0.0, 0.2)}, r"std is \(0.2, 0.0, 0.2\); each must be above 0"),
        ({"max_frames": 2}, "max-frames is 2; it must be at least 3"),
    ],
)
def test_ranges(settings, message):
    with pytest.raises(ValueError, match=message):
        VideoSegmentation(**settings)
