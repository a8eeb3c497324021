"""All images of a folder inspected on all cores; results are kept in a file, so that a second call goes on."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import cv2

from selfpatch.data.image_files import ImageFiles
from selfpatch.data.inspection.inspect import Inspected, inspect_image
from selfpatch.data.location import Location
from selfpatch.data.reading.image_file import UnreadableImage
from selfpatch.errors import UserError

# Few images are read by threads before processes have started.
FEW_IMAGES, IMAGES_AT_ONCE = 500, 512
_VERSION = 1


def inspect_all(
    images: ImageFiles, *, num_processes: int, cache: "InspectionCache | None" = None, pages: str = "auto"
) -> Iterator[Inspected]:
    """Every image, in their order."""
    with _pool(len(images), num_processes) as pool:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            places = [images.location(index) for index in range(start, min(start + IMAGES_AT_ONCE, len(images)))]
            known = [None if cache is None else cache.find(place) for place in places]
            new = [place for place, found in zip(places, known, strict=True) if found is None]
            found_new = pool.map(partial(inspect_image, pages=pages), new, chunksize=8)
            for place, found in zip(places, known, strict=True):
                if found is None:
                    found = next(found_new)
                    if cache is not None:
                        cache.add(place, found)
                yield found


def _pool(num_images: int, num_processes: int) -> Executor:
    if num_images <= FEW_IMAGES or num_processes == 1:
        return ThreadPoolExecutor(num_processes)
    # Not forked: OpenCV's and others' threads would leave their locks taken in the copy.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))


class InspectionCache:
    """A file of JSON lines: what was found of each image, by its path, size and time of change.

    Lines are appended while images are read. A line that a killed process left unfinished does not count.

    Raises:
        UserError: the file cannot be written, or is something else.
    """

    def __init__(self, file: Path, *, pages: str = "auto"):
        self._pages = pages
        self._known: dict[str, tuple[list[int], dict[str, Any]]] = {}
        try:
            if file.exists():
                self._read(file)
            self._lines: TextIO = file.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file} cannot keep what is found ({error.strerror}); give a file in a folder") from error

    def _read(self, file: Path) -> None:
        content = file.read_bytes()
        is_known = False
        for line in content.splitlines():
            try:
                path, state, values = json.loads(line)
                is_known = is_known or values["version"] == _VERSION
                if values.pop("version") == _VERSION and values.pop("pages") == self._pages:
                    self._known[path] = state, values
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
        if content and not is_known:
            raise UserError(f"{file} is no file of selfpatch check; give another one, or one that is not there yet")
        if content and not content.endswith(b"\n"):
            with file.open("ab") as unfinished:
                unfinished.write(b"\n")

    def find(self, place: Location) -> Inspected | None:
        """What was found of the file as it is now; None: nothing yet."""
        state, values = self._known.get(_key(place.path), (None, {}))
        if state is None or state != _state(place):
            return None
        try:
            lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            return Inspected(place.path, **lists)
        except TypeError:
            return None

    def add(self, place: Location, found: Inspected) -> None:
        state = _state(place)
        if state is None or found.damage == "cannot be opened":
            return  # it may be readable the next time
        values = found._asdict()
        del values["path"]
        line = json.dumps([_key(place.path), state, values | {"version": _VERSION, "pages": self._pages}])
        self._lines.write(line + "\n")
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


def _key(path: Path) -> str:
    return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")


def _state(place: Location) -> list[int] | None:
    try:
        return place.stamp()
    except (OSError, UnreadableImage):
        return None
