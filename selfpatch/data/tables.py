"""Images in columns of tables: Hugging Face datasets as `save_to_disk` writes them (Arrow), and Parquet files.

Read by pyarrow alone, which is what `datasets` reads them with: Arrow is mapped into memory, of Parquet a group of rows
is decoded at a time.
"""

import functools
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.config import RGB_8, ImagesConfig, PixelFormat
from selfpatch.data.image_files import ImageFiles
from selfpatch.data.location import Location
from selfpatch.data.reading.image_file import MAX_BYTES, UnreadableImage, first_line
from selfpatch.errors import UserError
from selfpatch.output.printable import printable

ARROW, PARQUET = ".arrow", ".parquet"
# Of a data set that `save_to_disk` wrote, and of several under their names.
STATE, SPLITS = "state.json", "dataset_dict.json"
# Decoded bytes of a group of rows: it is in memory as a whole, in every worker.
MAX_GROUP_BYTES = 2**30
# Tables that each process keeps open, and groups of rows that it keeps decoded.
_MAX_OPEN, _MAX_GROUPS = 8, 2
_MAX_JSON_BYTES = 16 * 2**20


class TableCell(NamedTuple):
    """An image in a table.

    Args:
        group: record batch of an Arrow file, row group of a Parquet file.
        row: within the group.
    """

    file: str
    column: str
    group: int
    row: int
    number: int  # of the row in the file

    @property
    def path(self) -> Path:
        return Path(self.file) / f"{self.number:08d}"

    def read_bytes(self, limit: int = -1, *, checked: bool = False) -> bytes:
        cell = self._cell()
        if not cell.is_valid:
            raise UnreadableImage("no bytes in its cell; a path alone is not followed")
        data = cell.as_buffer()
        if data.size > MAX_BYTES:
            raise UnreadableImage(f"{data.size / 2**30:.1f} GiB, more than any image of allowed size needs")
        return data[:limit].to_pybytes() if limit >= 0 else data.to_pybytes()

    def num_bytes(self) -> int:
        cell = self._cell()
        return cell.as_buffer().size if cell.is_valid else 0

    def stamp(self) -> list[int]:
        status = os.stat(self.file)
        return [status.st_size, status.st_mtime_ns, self.num_bytes()]

    def _cell(self) -> Any:
        import pyarrow as pa

        try:
            return _GROUPS.get((self.file, self.column, self.group))[self.row]
        except (pa.ArrowException, OSError, IndexError, KeyError) as error:
            raise UnreadableImage(f"damaged table ({first_line(error)})") from error


class ImageTables(ImageFiles):
    """The images of a column of several tables, in their order; each is named by its table and row.

    Args:
        files: the tables; their bytes must not change while they are read.
        groups: of each file, the number of rows of each of its groups.
    """

    def __init__(
        self, files: Sequence[Path], groups: Sequence[Sequence[int]], column: str, *, pixels: PixelFormat = RGB_8
    ):
        super().__init__(notes=[], pixels=pixels)
        self._files, self._column = [str(file) for file in files], column
        self._file_of_group = np.repeat(np.arange(len(files)), [len(rows) for rows in groups])
        self._first_group = np.cumsum([0, *(len(rows) for rows in groups)])
        self._ends = np.cumsum([0, *(rows for of_file in groups for rows in of_file)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def location(self, index: int) -> Location:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}; they are numbered 0 to {len(self) - 1}")
        group = int(np.searchsorted(self._ends, index, side="right")) - 1
        file = int(self._file_of_group[group])
        first = int(self._first_group[file])
        row, number = index - int(self._ends[group]), index - int(self._ends[first])
        return TableCell(self._files[file], self._column, group - first, row, number)

    def name(self, index: int) -> str:
        path = self.path(index)
        return printable(f"{path.parent.name}/{path.name}")

    def fingerprint(self) -> str:
        """Changes with the names and sizes of the tables."""
        digest = hashlib.sha256(self._column.encode())
        for file in self._files:
            digest.update(os.fsencode(Path(file).name) + b"\0")
        digest.update(self._ends.tobytes())
        return digest.hexdigest()


def open_tables(path: Path, settings: ImagesConfig, pixels: PixelFormat = RGB_8) -> ImageTables | None:
    """The images of a folder that `save_to_disk` wrote, of a folder of Parquet files, or of one; None: it is none.

    Raises:
        UserError: tables that cannot be read, without a column of images or with several; pyarrow is missing.
    """
    if path.is_dir() and (path / SPLITS).is_file():
        names = [entry.name for entry in path.iterdir() if (entry / STATE).is_file()]
        raise UserError(
            f"{path} holds several data sets; give one of them: {', '.join(sorted(names)[:8]) or 'none is there'}"
        )
    if path.is_dir() and (path / STATE).is_file():
        files = _arrow_files(path)
    elif path.is_dir():
        files = sorted((f for f in path.glob(f"*{PARQUET}") if f.is_file()), key=os.fsencode)
        if not files:
            return None
    elif path.suffix.lower() in (ARROW, PARQUET) and path.is_file():
        files = [path]
    else:
        return None
    columns, groups = set(), []
    for file in files:
        found, rows = _describe(file)
        columns |= set(found) if not columns else set()
        columns &= set(found)
        groups.append(rows)
        if not columns and path.is_file() and path.suffix.lower() == PARQUET:
            return None  # a manifest
    if settings.include or settings.exclude:
        raise UserError(f"images.include and images.exclude compare names of files, and images of {path} have none")
    if not sum(map(sum, groups)):
        raise UserError(f"the tables of {path} have no rows")
    return ImageTables(files, groups, _the_column(path, columns), pixels=pixels)


def _arrow_files(path: Path) -> list[Path]:
    try:
        content = (path / STATE).read_bytes()
        if len(content) > _MAX_JSON_BYTES:
            raise ValueError("larger than any such file")
        state = json.loads(content)
        names = [entry["filename"] for entry in state["_data_files"]]
        if not names or any(Path(name).name != name or not name.endswith(ARROW) for name in names):
            raise ValueError("no names of files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise UserError(
            f"{path / STATE} is not as save_to_disk writes it ({reason}); write the data set again"
        ) from error
    if missing := [name for name in names if not (path / name).is_file()]:
        raise UserError(f"{len(missing)} of the {len(names)} tables of {path} are not there: {', '.join(missing[:3])}")
    return [path / name for name in names]


def _describe(file: Path) -> tuple[list[str], list[int]]:
    """Columns that hold encoded images, and the rows of each group."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(f"{file} needs pyarrow to be read: pip install 'selfpatch[parquet]'") from error
    try:
        table = _open(str(file))
        columns = [field.name for field in table.schema if _holds_bytes(field.type)]
        if file.suffix.lower() == PARQUET:
            _require_small_groups(file, table, columns)
        return columns, table.rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as a table: {first_line(error)}") from error


def _holds_bytes(kind: Any) -> bool:
    """Bytes, or as Hugging Face stores an image: a record of bytes and path."""
    import pyarrow.types as types

    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _the_column(path: Path, columns: set[str]) -> str:
    if len(columns) == 1 or "image" in columns:
        return "image" if "image" in columns else next(iter(columns))
    if not columns:
        raise UserError(
            f"no column of {path} holds images: bytes, or records of bytes and path as Hugging Face has them"
        )
    raise UserError(
        f"several columns of {path} hold bytes: {', '.join(sorted(columns))}; call the images' column image"
    )


def _require_small_groups(file: Path, table: "_Table", columns: list[str]) -> None:
    for group in range(len(table.rows)):
        found = table.source.metadata.row_group(group)
        sizes = [
            found.column(i).total_uncompressed_size
            for i in range(found.num_columns)
            if found.column(i).path_in_schema.partition(".")[0] in columns
        ]
        if any(size > MAX_GROUP_BYTES for size in sizes):
            raise UserError(
                f"a row group of {file} holds {max(sizes) / 2**30:.1f} GiB, which every data worker would decode to "
                "read one image; write the file with fewer rows per group (row_group_size=100)"
            )


class _Table(NamedTuple):
    """An open table: its groups of rows, and how the images of one of them are read."""

    source: Any
    schema: Any
    rows: list[int]
    read: Callable[[int, str], Any]


def _open(file: str) -> _Table:
    status = os.stat(file)
    return _open_as_it_is(file, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open_as_it_is(file: str, stamp: tuple[int, int]) -> _Table:
    import pyarrow as pa

    if file.endswith(PARQUET):
        from pyarrow import parquet

        source = parquet.ParquetFile(file, memory_map=True)
        rows = [source.metadata.row_group(i).num_rows for i in range(source.num_row_groups)]
        return _Table(source, source.schema_arrow, rows, functools.partial(_read_row_group, source))
    mapped = pa.memory_map(file)
    try:
        reader: Any = pa.ipc.open_stream(mapped)
        batches = list(reader)
    except pa.ArrowInvalid:  # the other of Arrow's two layouts
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return _Table(
        batches, reader.schema, [b.num_rows for b in batches], lambda group, name: batches[group].column(name)
    )


def _read_row_group(source: Any, group: int, column: str) -> Any:
    import pyarrow as pa

    # By pieces: a few bytes may stand for any number of rows.
    pieces, num_bytes = [], 0
    for batch in source.iter_batches(64, row_groups=[group], columns=[column], use_threads=False):
        num_bytes += batch.nbytes
        if num_bytes > 2 * MAX_GROUP_BYTES:
            raise OSError("a group of rows of more bytes than it says")
        pieces.append(batch.column(0))
    return pa.chunked_array(pieces)


class _Groups:
    """The groups of rows read last, checked; per process and thread-safe."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def get(self, key: tuple[str, str, int]) -> Any:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            file, column, group = key
            found = _open(file).read(group, column)
            # Offsets of a damaged or crafted file would lead anywhere in memory.
            found.validate(full=True)
            import pyarrow.types as types

            if types.is_struct(found.type):
                field = found.type.get_field_index("bytes")
                found = _field(found, field)
            self._groups[key] = found
            while len(self._groups) > _MAX_GROUPS:
                self._groups.popitem(last=False)
            return found

    def _forget(self) -> None:
        """After a fork: threads of Arrow and locks of the parent are not there."""
        self._lock = threading.Lock()
        self._groups.clear()
        _open_as_it_is.cache_clear()


def _field(column: Any, field: int) -> Any:
    """Of records their bytes; none where there is no record."""
    import pyarrow as pa

    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array([chunk.flatten()[field] for chunk in chunks])


_GROUPS = _Groups()
