"""Images by a list of their paths: CSV, JSON lines, Parquet or plain text, instead of a folder."""

import csv
import hashlib
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
from selfpatch.config.cache_folder import cache_folder
from selfpatch.data.image_files import ImageFiles, NamedFiles, append_name
from selfpatch.data.image_folder import ImageFolder, chosen_by, plural
from selfpatch.data.location import Location
from selfpatch.data.remote.open_remote import cannot_be_read, fetch_file, open_remote
from selfpatch.data.remote.remote_images import RemoteLocation
from selfpatch.data.remote.urls import is_url, require_allowed
from selfpatch.data.shards.open_shards import open_shards
from selfpatch.data.tables import open_tables
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write

ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet", ".txt")
# Names of the column of paths, in order of preference.
COLUMNS = ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "image")
_STAT_THREADS, _ROWS_AT_ONCE = 32, 65_536
# Half of a character, which JSON can write and no name of a file has; os.fsdecode's own are bytes that are no UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# With so many rows that were there before, the rest is not read.
_MAX_TWICE = 100_000
# Of a remote manifest: a table of ten million paths.
_MAX_REMOTE_BYTES = 2**30


def open_images(images: Path | str, settings: ImagesConfig | None = None, *, pixels: PixelFormat = RGB_8) -> ImageFiles:
    """The images of a folder, of shards, of tables, or of a manifest; each may be local or behind a URL.

    Raises:
        UserError: there is no such thing, or no image in it.
    """
    settings = settings or ImagesConfig()
    include, exclude = settings.include, settings.exclude
    if is_url(text := os.fspath(images)):
        if text.lower().endswith(ENDINGS):
            return ImageManifest(_fetched(text), url=text, include=include, exclude=exclude, pixels=pixels)
        return open_remote(text, settings, pixels)
    path = Path(images)
    for opened in (open_shards, open_tables):
        if (found := opened(path, settings, pixels)) is not None:
            return found
    if path.is_file() and path.suffix.lower() in ENDINGS:
        return ImageManifest(path, include=include, exclude=exclude, pixels=pixels)
    return ImageFolder(path, include=include, exclude=exclude, pixels=pixels)


def _fetched(url: str) -> Path:
    """A copy of a remote manifest, in the cache folder."""
    require_allowed(url)
    with cannot_be_read(url):
        content = fetch_file(url, _MAX_REMOTE_BYTES)
        name = hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:32]
        copy = cache_folder() / "manifests" / f"{name}{os.path.splitext(url)[1].lower()}"
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_write(copy) as temporary:
                temporary.write_bytes(content)
    return copy


class ImageManifest(NamedFiles):
    """The images that a file lists, in its order. Paths are as seen from the manifest's folder, absolute, or URLs.

    A table has them in a column called `path` (COLUMNS has other names); of plain text every line is one. Whether
    remote images are there shows when they are read.

    Args:
        url: of a remote manifest, of which `path` is a copy; all its images are remote.

    Raises:
        UserError: it cannot be read, lacks the column, lists nothing, an image twice, or files that are not there.
    """

    def __init__(
        self,
        path: Path,
        *,
        url: str = "",
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
        remote = [name for name in chosen if url or is_url(os.fsdecode(name))]
        for name in remote:
            if is_url(text := os.fsdecode(name)):
                require_allowed(text)
        if not url:
            _require_files(path, [name for name in chosen if not is_url(os.fsdecode(name))])
        names, ends = bytearray(), array("q", [0])
        for name in chosen:
            append_name(names, ends, name)
        left_out = len(listed) - len(chosen)
        notes = [f"{plural(left_out, 'image is', 'images are')} left out by the patterns given"] if left_out else []
        super().__init__([path.parent], names, ends, [0], notes=notes, pixels=pixels)
        self._folder_url = url.rpartition("/")[0]
        self.are_files = not remote

    def location(self, index: int) -> Location:
        name = os.fsdecode(self.name_bytes(index))
        if is_url(name):
            return RemoteLocation(name)
        return RemoteLocation(f"{self._folder_url}/{name.lstrip('/')}") if self._folder_url else super().location(index)


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
