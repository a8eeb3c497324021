"""Token maps of many images on the disk: NumPy, safetensors, Parquet or Zarr, with an index that grows with them.

A line of the index is written after its tokens are, so work that was cut goes on behind the last line, and nothing
that the index names is ever damaged.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from selfpatch.errors import UserError, working
from selfpatch.output.atomic_files import atomic_write, open_to_append
from selfpatch.output.printable import as_path_below

INDEX = "index.jsonl"
# Bytes of tokens that are held before they are written to a file of many images.
PART_BYTES = 64 * 2**20
# Tokens per chunk of a Zarr array: 1 MB at a width of 512 in float16.
CHUNK_ROWS = 1024

TokenMap = Float[np.ndarray, "_r _s _d"]


class Entry(NamedTuple):
    """A line of the index: where the tokens of an image are."""

    name: str
    rows: int
    columns: int
    file: str  # as seen from the folder of the index
    start: int  # first row of the image in a file of one row per token, else 0


class TokenFiles:
    """Tokens in one format below a folder; `add` them image by image, `close` at the end.

    Args:
        dim: width of a token.

    Raises:
        UserError: the package that writes the format is not installed; the index is none.
    """

    needs: tuple[str, str] | None = None  # module and extra

    def __init__(self, folder: Path, dim: int, dtype: str):
        if self.needs is not None:
            try:
                importlib.import_module(self.needs[0])
            except ImportError as error:
                package, extra = self.needs[0].partition(".")[0], self.needs[1]
                message = f"this format needs {package}: pip install 'selfpatch[{extra}]', or use --format npy"
                raise UserError(message) from error
        self.folder, self.dim, self.dtype = folder, dim, np.dtype(dtype)
        self.entries, self._index_bytes = read_index(folder / INDEX)
        self._waiting: list[tuple[str, TokenMap]] = []
        self._bytes = 0

    def add(self, name: str, tokens: TokenMap) -> None:
        """Keep the tokens of an image; they are on the disk when enough have come together, or after `close`."""
        tokens = tokens.astype(self.dtype)
        self._waiting.append((name, tokens))
        self._bytes += tokens.nbytes
        if self._bytes >= self.part_bytes:
            self._flush()

    def close(self) -> None:
        """Write what is still held."""
        if self._waiting:
            self._flush()

    @working()
    def _flush(self) -> None:
        new = self._write(self._waiting)
        self._waiting, self._bytes = [], 0
        with open_to_append(self.folder / INDEX, errors="backslashreplace") as index:
            if self._index_bytes is not None:
                os.truncate(index.fileno(), self._index_bytes)  # a last line that was cut
                self._index_bytes = None
            index.writelines(json.dumps(entry._asdict(), ensure_ascii=False) + "\n" for entry in new)
            index.flush()
            os.fsync(index.fileno())
        self.entries += new

    @property
    def part_bytes(self) -> int:
        return PART_BYTES

    def _write(self, images: list[tuple[str, TokenMap]]) -> list[Entry]:
        raise NotImplementedError

    def _next_part(self, ending: str) -> str:
        """A name that no file of the index has."""
        return f"tokens-{len({entry.file for entry in self.entries}):05}.{ending}"


class NumpyFiles(TokenFiles):
    """patches/NAME.npy, [R, S, D], one file per image."""

    @property
    def part_bytes(self) -> int:
        return 0

    def _write(self, images: list[tuple[str, TokenMap]]) -> list[Entry]:
        new = []
        for name, tokens in images:
            file = f"patches/{as_path_below(name)}.npy"
            save_array(self.folder / file, tokens)
            new.append(Entry(name, tokens.shape[0], tokens.shape[1], file, 0))
        return new


class SafetensorsFiles(TokenFiles):
    """tokens-00000.safetensors, ...: one tensor [R, S, D] per image, by its name."""

    def _write(self, images: list[tuple[str, TokenMap]]) -> list[Entry]:
        from safetensors.numpy import save_file

        file = self._next_part("safetensors")
        with atomic_write(self.folder / file) as temporary:
            save_file({name: np.ascontiguousarray(tokens) for name, tokens in images}, temporary)
        return [Entry(name, tokens.shape[0], tokens.shape[1], file, 0) for name, tokens in images]


class ParquetFiles(TokenFiles):
    """tokens-00000.parquet, ...: one row per token, with `name`, `row`, `column` and `token`, a list of fixed size."""

    needs = ("pyarrow.parquet", "parquet")

    def _write(self, images: list[tuple[str, TokenMap]]) -> list[Entry]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, new, start = self._next_part("parquet"), [], 0
        names, places = [], []
        for name, tokens in images:
            rows, columns = tokens.shape[:2]
            new.append(Entry(name, rows, columns, file, start))
            start += rows * columns
            names += [name] * (rows * columns)
            places.append(np.indices((rows, columns), np.int32).reshape(2, -1))
        values = pa.array(np.concatenate([tokens.ravel() for _, tokens in images]))
        row, column = np.concatenate(places, axis=1)
        table = pa.table(
            {
                "name": names,
                "row": row,
                "column": column,
                "token": pa.FixedSizeListArray.from_arrays(values, self.dim),
            }
        )
        with atomic_write(self.folder / file) as temporary:
            pq.write_table(table, temporary)
        return new


class ZarrArray(TokenFiles):
    """tokens.zarr: one array [tokens of all images, D], in chunks; the index says where an image begins."""

    needs = ("zarr", "zarr")
    file = "tokens.zarr"

    def _write(self, images: list[tuple[str, TokenMap]]) -> list[Entry]:
        import zarr

        start = sum(entry.rows * entry.columns for entry in self.entries)
        path = self.folder / self.file
        if start:
            array: Any = zarr.open_array(path, mode="r+")
            array.resize((start, self.dim))  # what came after the last line of the index was cut
        else:
            array = zarr.create_array(
                path, shape=(0, self.dim), chunks=(CHUNK_ROWS, self.dim), dtype=self.dtype, overwrite=True
            )
        array.append(np.concatenate([tokens.reshape(-1, self.dim) for _, tokens in images]))
        new = []
        for name, tokens in images:
            rows, columns = tokens.shape[:2]
            new.append(Entry(name, rows, columns, self.file, start))
            start += rows * columns
        return new


FORMATS = {"npy": NumpyFiles, "zarr": ZarrArray, "parquet": ParquetFiles, "safetensors": SafetensorsFiles}


def read_index(path: Path) -> tuple[list[Entry], int]:
    """The entries of an index, and the number of its bytes without a last line that was cut.

    Raises:
        UserError: a whole line that is no entry.
    """
    text = path.read_bytes() if path.exists() else b""
    *lines, cut = text.split(b"\n")
    entries = []
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
            if not all(type(number) is int and number >= 0 for number in (entry.rows, entry.columns, entry.start)):
                raise ValueError("sizes are numbers")
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is no index of tokens: {line[:60]!r}; give another folder") from error
        entries.append(entry)
    return entries, len(text) - len(cut)


@working()
def save_array(path: Path, array: np.ndarray) -> None:
    """Write a NumPy file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
