"""Small copies of pictures that a run draws anew: a bounded number of steps of each, for the slider of its page."""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from selfpatch.output.atomic_files import atomic_write

# Steps kept of each picture; the first and the newest are always among them.
MAX_STEPS = 12
MAX_WIDTH, JPEG_QUALITY = 1000, 78
# Of all pictures of a page together, in characters of base64.
MAX_PAGE_BYTES = 8_000_000
# A picture that is larger on the disk is not one of ours.
MAX_FILE_BYTES = 50_000_000

# What the page draws itself, from numbers.
DRAWN_FROM_NUMBERS = re.compile(r"curves|class_\w+")
_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d{8,})\.jpg", re.S)


class Frame(NamedTuple):
    """A picture as it was after a step; None: of no step."""

    step: int | None
    jpeg: bytes
    width: int
    height: int


class EarlierPictures:
    """PICTURES/steps/NAME-STEP.jpg, of every PICTURES/NAME.png.

    Args:
        pictures: the folder of the pictures of a run.
        first_step: steps done; copies of later ones are of an attempt that is void, and are removed.
    """

    def __init__(self, pictures: Path, *, first_step: int):
        self._pictures, self._folder = pictures, pictures / "steps"
        for path, step in _kept(self._folder):
            if first_step == 0 or step > first_step:
                path.unlink(missing_ok=True)
        self._seen = self._times()
        self._left: dict[Path, int] = {}  # drawn after this step, and not copied

    def keep(self, step: int, *, is_cheap: bool = True) -> None:
        """Copy the pictures that were drawn since the last call; they are those of `step`.

        Args:
            is_cheap: False: leave them for now; `keep_last` copies them if they are not drawn again.
        """
        times = self._times()
        self._left |= {path: step for path, time in times.items() if self._seen.get(path) != time}
        self._seen = times
        if is_cheap:
            for path in [path for path, drawn in self._left.items() if drawn == step]:
                self._copy(path)

    def keep_last(self) -> None:
        """Copy what is there and was left."""
        for path in list(self._left):
            self._copy(path)

    def _copy(self, path: Path) -> None:
        step = self._left.pop(path)
        jpeg, _, _ = small_jpeg(path)
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._folder / f"{path.stem}-{step:08d}.jpg") as temporary:
            temporary.write_bytes(jpeg)
        self._thin(path.stem)

    def _thin(self, name: str) -> None:
        steps = sorted(step for path, step in _kept(self._folder) if _NAME.fullmatch(path.name)["name"] == name)  # type: ignore[index]
        for step in set(steps) - set(thinned_steps(steps, MAX_STEPS)):
            (self._folder / f"{name}-{step:08d}.jpg").unlink(missing_ok=True)

    def _times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted(self._pictures.glob("*.png")) if is_shown(path)}


def is_shown(path: Path) -> bool:
    return DRAWN_FROM_NUMBERS.fullmatch(path.stem) is None


def _kept(folder: Path) -> list[tuple[Path, int]]:
    """Files of copies with their steps, in their order."""
    found = [(path, match) for path in folder.glob("*.jpg") if (match := _NAME.fullmatch(path.name))]
    return sorted(((path, int(match["step"])) for path, match in found), key=lambda pair: (pair[0].name, pair[1]))


def thinned_steps(steps: list[int], limit: int) -> list[int]:
    """The first, the last, and others spread over the run: the one that leaves the smallest gap goes first."""
    kept = sorted(steps)
    while len(kept) > max(limit, 2):
        gaps = [kept[i + 1] - kept[i - 1] for i in range(1, len(kept) - 1)]
        del kept[1 + gaps.index(min(gaps))]
    return kept


def small_jpeg(path: Path, max_width: int = MAX_WIDTH) -> tuple[bytes, int, int]:
    """A picture as JPEG, at most so wide; with its width and height.

    Raises:
        OSError: it is no picture, or is too large to be one of ours.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(f"{path} is larger than a picture of a run")
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise OSError(f"{path} is no picture")
    height, width = pixels.shape[:2]
    if width > max_width:
        height, width = max(1, round(height * max_width / width)), max_width
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return jpeg.tobytes(), width, height


def frames_of_run(pictures: Path) -> dict[str, list[Frame]]:
    """What is kept of every picture, in the order of its steps; what cannot be read is left out."""
    frames: dict[str, list[Frame]] = {}
    for path, step in _kept(pictures / "steps"):
        match = _NAME.fullmatch(path.name)
        jpeg = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_PAGE_BYTES else b""
        if match and (size := jpeg_size(jpeg)):
            frames.setdefault(match["name"], []).append(Frame(step, jpeg, *size))
    return {name: sorted(found, key=lambda frame: frame.step or 0) for name, found in frames.items()}


def frames_of_folder(pictures: Path, *, limit: int = 40) -> dict[str, list[Frame]]:
    """Pictures that are drawn once, by name; what cannot be read is left out."""
    frames: dict[str, list[Frame]] = {}
    found = sorted(path for ending in ("png", "jpg") for path in pictures.glob(f"**/*.{ending}"))
    for path in [path for path in found if is_shown(path) and path.parent.name != "steps"][:limit]:
        try:
            jpeg, width, height = small_jpeg(path)
        except OSError:
            continue
        name = path.relative_to(pictures).with_suffix("").as_posix()
        frames[name] = [Frame(None, jpeg, width, height)]
    return frames


def jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Width and height; None: it is no JPEG."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return image.size
    except (OSError, Image.DecompressionBombError):
        return None


def fitting(frames: dict[str, list[Frame]], limit: int = MAX_PAGE_BYTES) -> dict[str, list[Frame]]:
    """As many frames as fit: of the picture with most bytes one goes, as in `thinned_steps`; whole ones go last."""
    frames = {name: list(found) for name, found in frames.items() if found}

    def size(name: str) -> int:
        return sum(base64_length(frame.jpeg) for frame in frames[name])

    while sum(map(size, frames)) > limit:
        several = [name for name in frames if len(frames[name]) > 1]
        if not several:
            frames.popitem()
            continue
        largest = max(several, key=size)
        if len(frames[largest]) == 2:
            frames[largest] = frames[largest][1:]
            continue
        steps = [frame.step or 0 for frame in frames[largest]]
        kept = set(thinned_steps(steps, len(steps) - 1))
        frames[largest] = [frame for frame in frames[largest] if (frame.step or 0) in kept]
    return frames


def base64_length(content: bytes) -> int:
    return 4 * -(-len(content) // 3)


def data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
