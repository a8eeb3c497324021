"""Images by a list of their paths: CSV, JSON lines, Parquet or plain text, instead of a folder."""

import csv
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfpatch.config import RGB_8, ImagesConfig, PixelFormat
from selfpatch.data.image_files import ImageFiles, append_name
from selfpatch.data.image_folder import ImageFolder, chosen_by, plural
from selfpatch.errors import UserError

ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet", ".txt")
# Names of the column of paths, in order of preference.
COLUMNS = ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "image")
_STAT_THREADS, _ROWS_AT_ONCE = 32, 65_536
# Half of a character, which JSON can write and no name of a file has; os.fsdecode's own are bytes that are no UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# With so many rows that were there before, the rest is not read.
_MAX_TWICE = 100_000


def open_images(path: Path, settings: ImagesConfig | None = None, *, pixels: PixelFormat = RGB_8) -> ImageFiles:
    """The images of a folder, or of a manifest.

    Raises:
        UserError: no such folder or manifest, or no image in it.
    """
    settings = settings or ImagesConfig()
    if path.is_file() and path.suffix.lower() in ENDINGS:
        return ImageManifest(path, include=settings.include, exclude=settings.exclude, pixels=pixels)
    return ImageFolder(path, include=settings.include, exclude=settings.exclude, pixels=pixels)


class ImageManifest(ImageFiles):
    """The images that a file lists, in its order. Paths are as seen from the manifest's folder, or absolute.

    A table has them in a column called `path` (COLUMNS has other names); of plain text every line is one.

    Raises:
        UserError: it cannot be read, lacks the column, lists nothing, an image twice, or files that are not there.
    """

    def __init__(
        self,
        path: Path,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        pixels: PixelFormat = RGB_8,
    ):
        listed, twice = _without_duplicates(path)
        if not listed:
            raise UserError(f"the manifest {path} lists no image; give one path per row")
        if twice:
            count = f"{twice.total():,}" if twice.total() < _MAX_TWICE else f"at least {_MAX_TWICE:,}"
            raise UserError(
                f"the manifest {path} lists {count} images more than once, "
                f"{os.fsdecode(twice.most_common(1)[0][0])} for one; keep one row per image"
            )
        is_chosen = chosen_by(include, exclude)
        chosen = [name for name in listed if is_chosen is None or is_chosen(name)]
        if not chosen:
            raise UserError(
                f"none of the {len(listed):,} images in {path} is left by the patterns: include "
                f"{' '.join(include) or 'all'}, exclude {' '.join(exclude) or 'none'}"
            )
        _require_files(path, chosen)
        names, ends = bytearray(), array("q", [0])
        for name in chosen:
            append_name(names, ends, name)
        left_out = len(listed) - len(chosen)
        notes = [f"{plural(left_out, 'image is', 'images are')} left out by the patterns given"] if left_out else []
        super().__init__([path.parent], names, ends, [0], notes=notes, pixels=pixels)


def _without_duplicates(path: Path) -> tuple[list[bytes], Counter[bytes]]:
    """Names in their order, and how often each was there again."""
    names: dict[bytes, None] = {}
    twice: Counter[bytes] = Counter()
    for text in _listed(path):
        name = os.fsencode(text)
        if name in names:
            twice[name] += 1
            if twice.total() >= _MAX_TWICE:
                break
        names[name] = None
    return list(names), twice


def _require_files(manifest: Path, names: list[bytes]) -> None:
    root = os.fsencode(manifest.parent)
    with ThreadPoolExecutor(_STAT_THREADS) as pool:  # one round trip each on a network file system
        is_there = list(pool.map(lambda name: os.path.isfile(os.path.join(root, name)), names, chunksize=256))
    if missing := [os.fsdecode(name) for name, there in zip(names, is_there, strict=True) if not there]:
        raise UserError(
            f"{len(missing):,} of the {len(names):,} files that {manifest} lists are not there: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; paths are as seen from {manifest.parent}, "
            "or absolute"
        )


def _listed(path: Path) -> Iterator[str]:
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _parquet(path)
            case ".txt":
                yield from filter(None, (line.strip() for line in path.read_text("utf-8-sig").split("\n")))
            case ".csv":
                with path.open(newline="", encoding="utf-8-sig") as file:
                    rows = csv.DictReader(file)
                    column = _column(path, list(rows.fieldnames or []))
                    yield from (_text(path, number, row[column]) for number, row in enumerate(rows, start=2))
            case _:
                with path.open(encoding="utf-8-sig") as file:
                    yield from _json_lines(path, file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the manifest {path} cannot be read: {error}; it is text in UTF-8, or Parquet") from error


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[str]:
    column = ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is not JSON ({error}); every line is one object") from error
        if not isinstance(row, dict):
            raise UserError(f'line {number} of {path} is no object; every line is one, such as {{"path": "a.tif"}}')
        column = column or _column(path, list(row))
        yield _text(path, number, row.get(column))


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow to be read: pip install 'selfpatch[parquet]', or give the manifest as CSV"
        ) from error
    try:
        column = _column(path, pq.read_schema(path).names)
        num_rows = 0
        # By pieces: a few bytes may stand for any number of rows.
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                for number, value in enumerate(batch[0].to_pylist(), start=num_rows + 1):
                    yield _text(path, number, value)
                num_rows += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the manifest {path} cannot be read as Parquet: {reason}") from error


def _column(path: Path, names: list[str]) -> str:
    if (found := next((column for column in COLUMNS if column in names), None)) is None:
        raise UserError(
            f"the manifest {path} has no column of paths: it has {', '.join(map(str, names[:8])) or 'no column'}; call "
            f"the column {COLUMNS[0]} (or {', '.join(COLUMNS[1:])})"
        )
    return found


def _text(path: Path, number: int, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value or _LONE_SURROGATE.search(value):
        shown = repr(value)[:200]
        raise UserError(f"row {number} of the manifest {path} has no path but {shown}; give the path of an image")
    return value.strip()
