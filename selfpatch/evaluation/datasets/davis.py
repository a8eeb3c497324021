"""Videos with one object mask per frame, in DAVIS-2017's layout, checked whole at the start."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.data.reading.labels import read_stored_numbers
from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.identity import val_set
from selfpatch.evaluation.datasets.labeled_images import listed, read_image_or_raise, read_lines, spread

VOID = 255  # a label of pixels that belong to no object, as 0
MAX_OBJECTS = 254  # labels of 8 bits, without 0 and VOID
MIN_FRAMES = 3  # the first and the last are not scored

FRAMES, ANNOTATIONS, VIDEO_LIST = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"
WHERE = "DAVIS-2017 (TrainVal, 480p) is at https://davischallenge.org/davis2017/code.html; give the folder that holds "
WHERE += "JPEGImages, Annotations and ImageSets"


class Frame(NamedTuple):
    image: Path
    annotation: Path


class Video(NamedTuple):
    name: str
    frames: list[Frame]
    size: tuple[int, int]  # (rows, columns)
    num_objects: int  # the highest label of the first frame; who appears later is not followed


class Davis:
    """The validation videos of DAVIS-2017, or of other videos laid out as it is.

        JPEGImages/480p/VIDEO/FRAME.jpg   Annotations/480p/VIDEO/FRAME.png   ImageSets/2017/val.txt: one VIDEO per line

    Annotations are gray or palette images whose numbers, not colors, are objects: 1, 2, ... in every frame the same;
    0 and 255 are background.

    Args:
        max_videos: at most so many, spread evenly over the list; only these are checked.
        max_frames: at most so many of each, from its start; only these are checked.

    Raises:
        UserError: the folder is not complete and consistent; the message names files.

    Source: davisvideochallenge/davis2017-evaluation, whose semi-supervised task takes the objects from the first frame
    and counts void pixels as background.
    """

    def __init__(self, root: Path, *, max_videos: int | None = None, max_frames: int | None = None):
        self.root = root
        names = read_video_list(root)
        self.videos = [check_video(root, name, max_frames) for name in spread(names, max_videos)]

    def describe(self) -> dict[str, Any]:
        """Dataset facts, recorded in result.json."""
        return {
            "split": VIDEO_LIST,
            "num_videos": len(self.videos),
            "num_frames": sum(len(video.frames) for video in self.videos),
            "num_objects": sum(video.num_objects for video in self.videos),
            "val_set": val_set(f"{video.name}/{frame.image.name}" for video in self.videos for frame in video.frames),
        }


def matches_layout(root: Path) -> bool:
    """True if a folder is meant to be one of these, complete or not."""
    return (root / VIDEO_LIST).is_file() or (root / ANNOTATIONS).is_dir()


def read_video_list(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"there is no folder {root}. {WHERE}")
    for part in (FRAMES, ANNOTATIONS):
        if not (root / part).is_dir():
            found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
            raise UserError(f"{root} has no folder {part} (it holds {found}). {WHERE}")
    path = root / VIDEO_LIST
    if not path.is_file():
        raise UserError(f"there is no list of videos {path}. {WHERE}, or write the list: a video's name on each line")
    # A name that is listed twice is one video, as in the toolkit.
    names = list(dict.fromkeys(read_lines(path)))
    if not names:
        raise UserError(f"{path} lists no video; write the names of folders in {root / FRAMES} into it, one per line")
    if others := [name for name in names if Path(name).name != name or name == ".."]:
        raise UserError(f"{path} lists {others[0]!r}, which is a path; write the bare name of a folder in {FRAMES}")
    return names


def check_video(root: Path, name: str, max_frames: int | None) -> Video:
    """Reads every frame and annotation once: what cannot be read or does not fit is better known now."""
    frames = match_images_to_masks(root, name)[:max_frames]
    if len(frames) < MIN_FRAMES:
        raise UserError(
            f"the video {name} has {len(frames)} of the {MIN_FRAMES} frames that are needed at least: the first one is "
            f"given and the last one is not scored; add frames, or take {name} out of {VIDEO_LIST}"
        )
    with ThreadPoolExecutor() as pool:
        sizes = list(
            pool.map(lambda frame: (read_image_or_raise(frame.image).shape[:2], read_labels(frame).shape), frames)
        )
    size = sizes[0][0]
    for frame, (image_size, annotation_size) in zip(frames, sizes, strict=True):
        for path, found in ((frame.image, image_size), (frame.annotation, annotation_size)):
            if found != size:
                raise UserError(
                    f"{path} is {found[1]} x {found[0]} pixels, and the first frame of {name} {size[1]} x {size[0]}; "
                    "all frames and annotations of a video must be of one size"
                )
    num_objects = int(read_annotation(frames[0]).max())
    if num_objects == 0:
        hint = " (255 means void here; DAVIS-2016 writes its one object so)" if VOID in read_labels(frames[0]) else ""
        raise UserError(
            f"{frames[0].annotation}, the first of {name}, labels no object{hint}, so there is nothing to follow; "
            f"number the objects of the first frame 1, 2, ..., or take {name} out of {VIDEO_LIST}"
        )
    return Video(name, frames, size, num_objects)


def match_images_to_masks(root: Path, name: str) -> list[Frame]:
    """The frames of a video with their annotations, in the order of their names."""
    images, annotations = root / FRAMES / name, root / ANNOTATIONS / name
    for folder in (images, annotations):
        if not folder.is_dir():
            raise UserError(f"{VIDEO_LIST} lists {name}, but there is no folder {folder}; add it. {WHERE}")
    image_of, annotation_of = (
        {path.stem: path for path in folder.glob(f"*{ending}") if not path.name.startswith(".")}
        for folder, ending in ((images, ".jpg"), (annotations, ".png"))
    )
    if not image_of:
        raise UserError(f"{images} holds no frames (.jpg); add them, or take {name} out of {VIDEO_LIST}")
    if unpaired := sorted(image_of.keys() - annotation_of.keys()):
        raise UserError(
            f"{len(unpaired)} of {len(image_of)} frames in {images} have no annotation (same name, .png) in "
            f"{annotations}: {listed(unpaired)}; all of them are scored against one: add the annotations. {WHERE}"
        )
    if unpaired := sorted(annotation_of.keys() - image_of.keys()):
        raise UserError(
            f"{len(unpaired)} of {len(annotation_of)} annotations in {annotations} have no frame (same name, .jpg) in "
            f"{images}: {listed(unpaired)}; add the frames or remove the annotations"
        )
    return [Frame(image_of[stem], annotation_of[stem]) for stem in sorted(image_of)]


def read_frame(frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
    return read_image_or_raise(frame.image)


def read_annotation(frame: Frame) -> UInt8[np.ndarray, "H W"]:
    """0: background, void included; 1, 2, ...: objects."""
    labels = read_labels(frame)
    return np.where(labels == VOID, 0, labels).astype(np.uint8)


def read_labels(frame: Frame) -> UInt8[np.ndarray, "H W"]:
    """The numbers that an annotation stores."""
    path = frame.annotation
    try:
        labels = read_stored_numbers(path)
    except UnreadableImage as error:
        raise UserError(f"the annotation {path} cannot be read: {error}; replace it. {WHERE}") from error
    if labels.max() > VOID:
        raise UserError(
            f"the annotation {path} has an object {labels.max()}; masks are written as indexed PNG, which has room for "
            f"{MAX_OBJECTS} objects (255 is void): number them anew, or leave some out"
        )
    return labels.astype(np.uint8)
