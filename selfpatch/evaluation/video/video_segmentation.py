"""Video object segmentation by label propagation from the first frame, on frozen patches: nothing is trained."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.davis import Davis, Frame, Video, read_annotation, read_frame
from selfpatch.evaluation.feature_cache import unwrap_cache
from selfpatch.evaluation.features import (
    batches,
    eval_mode,
    normalized,
    patch_features,
    prefetch,
    resize_mask,
)
from selfpatch.evaluation.protocols.video_segmentation import VideoSegmentation
from selfpatch.evaluation.task import EvalContext, EvalOutput
from selfpatch.evaluation.video.davis_measures import ObjectScores, global_measures, score_frame
from selfpatch.evaluation.video.label_propagation import first_labels, labels_to_mask, propagate
from selfpatch.evaluation.video.video_pictures import write_mask, write_video_pictures


def run(backbone: Backbone, root: Path, protocol: VideoSegmentation, context: EvalContext) -> EvalOutput:
    """Writes OUT/masks/VIDEO/FRAME.png, OUT/scores.json (J and F by video, object and frame), and pictures.

    Source: facebookresearch/dino eval_video_segmentation.py, and alinlab/SelfPatch's copy, which has no final norm;
    davisvideochallenge/davis2017-evaluation.
    Differs: see `VideoSegmentation.differs`.
    """
    # 1. Check everything before anything is written.
    data = Davis(root, max_videos=protocol.max_videos, max_frames=protocol.max_frames)
    for video in data.videos:
        frame_size(video, protocol, backbone.patch_size)

    # 2. Video by video: masks, scores, pictures.
    scores: dict[str, list[ObjectScores]] = {}
    done, total = 0, sum(len(video.frames) for video in data.videos)
    with eval_mode(backbone):
        for video in data.videos:
            masks = []
            for frame, mask in zip(video.frames, segment(backbone, video, protocol, context.device), strict=True):
                write_mask(mask, context.out / "masks" / video.name / f"{frame.image.stem}.png")
                masks.append(mask)
                done += 1
                context.report(done, total)
            scores[video.name] = score_video(video, masks)
            write_video_pictures(video, masks, context.pictures)
    write_scores(scores, context.out / "scores.json")

    # 3. Means over all objects, and each object.
    named = {f"{name}_{i}": of_object for name, objects in scores.items() for i, of_object in enumerate(objects, 1)}
    metrics = global_measures(list(named.values()))
    metrics |= {f"J&F/{name}": float(of_object.J.mean() + of_object.F.mean()) / 2 for name, of_object in named.items()}
    features = "output of the backbone" if uses_final_norm(backbone, protocol) else "last block, without a final norm"
    return EvalOutput(metrics, data.describe(), {"features": features}, lower_is_better=["J-Decay", "F-Decay"])


def frame_size(video: Video, protocol: VideoSegmentation, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Size (rows, columns) in pixels that frames are resized to.

    Raises:
        UserError: not one patch fits.
    """
    short, long = sorted(video.size)
    long_side = protocol.image_size * long // short // protocol.long_side_multiple * protocol.long_side_multiple
    rows, columns = video.size
    size = (long_side, protocol.image_size) if rows > columns else (protocol.image_size, long_side)
    if size[0] < patch_size[0] or size[1] < patch_size[1]:
        raise UserError(
            f"image-size is {protocol.image_size} px, which makes the frames of {video.name} {size[0]} x {size[1]} px "
            f"(rows x columns; the long side is a multiple of {protocol.long_side_multiple}), less than one patch of "
            f"{patch_size[0]} x {patch_size[1]}; make image-size larger, or long-side-multiple smaller"
        )
    return size


def segment(
    backbone: Backbone, video: Video, protocol: VideoSegmentation, device: torch.device
) -> Iterator[UInt8[np.ndarray, "H W"]]:
    """Mask of every frame at the frame's own size; that of the first frame is the annotation."""
    annotation = read_annotation(video.frames[0])
    yield annotation
    rows, columns = frame_size(video, protocol, backbone.patch_size)
    grid_size = rows // backbone.patch_size[0], columns // backbone.patch_size[1]
    propagated = propagate(
        encode(backbone, video, protocol, device),
        first_labels(annotation, grid_size, video.num_objects).to(device),
        num_last_frames=protocol.num_last_frames,
        radius=protocol.radius,
        num_neighbors=protocol.num_neighbors,
        temperature=protocol.temperature,
    )
    for labels in propagated:
        yield resize_mask(labels_to_mask(labels, backbone.patch_size).cpu().numpy(), video.size)


def encode(
    backbone: Backbone, video: Video, protocol: VideoSegmentation, device: torch.device
) -> Iterator[Float[Tensor, "D R S"]]:
    """Features of every frame, from the last block."""
    rows, columns = frame_size(video, protocol, backbone.patch_size)
    patch_rows, patch_columns = backbone.patch_size
    normed = uses_final_norm(backbone, protocol)

    def read(frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
        image = cv2.resize(read_frame(frame), (columns, rows), interpolation=cv2.INTER_LINEAR)  # not antialiased
        # Rows and columns beyond the last whole patch are dropped, as the original's patch embedding drops them.
        return image[: rows // patch_rows * patch_rows, : columns // patch_columns * patch_columns]

    for frames in prefetch(read, batches(video.frames, protocol.batch_size)):
        pixels = torch.from_numpy(np.stack(frames)).to(device)
        images = normalized(pixels, protocol.mean, protocol.std)
        yield from patch_features(backbone, images) if normed else last_block(backbone, images)


def uses_final_norm(backbone: Backbone, protocol: VideoSegmentation) -> bool:
    """A norm that SelfPatch's aggregator lent to the backbone is not its own: DINO's program would not see it."""
    return protocol.final_norm and not getattr(unwrap_cache(backbone), "final_norm_from_aggregator", False)


@torch.no_grad()
def last_block(backbone: Backbone, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D R S"]:
    """Features before the final norm, in float32 whatever autocast says; call it within `eval_mode`."""
    with torch.autocast(images.device.type, enabled=False):
        (features,) = backbone.forward_intermediates(images, [-1])
    return features.float()


def score_video(video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]]) -> list[ObjectScores]:
    """Scores of each object over all frames but the first, which is given, and the last, as the toolkit does."""
    of_frames = [
        score_frame(read_annotation(frame), mask, video.num_objects)
        for frame, mask in zip(video.frames[1:-1], masks[1:-1], strict=True)
    ]
    regions, boundaries = (np.stack(scores, axis=1) for scores in zip(*of_frames, strict=True))  # [O, T]
    return [ObjectScores(J, F) for J, F in zip(regions, boundaries, strict=True)]


def write_scores(scores: dict[str, list[ObjectScores]], path: Path) -> None:
    written = {
        name: [
            {"object": i, "J": of_object.J.tolist(), "F": of_object.F.tolist()}
            for i, of_object in enumerate(objects, start=1)
        ]
        for name, objects in scores.items()
    }
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
