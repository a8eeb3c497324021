"""Arrays of NumPy as images: .npy, and .npz of one array. Never unpickled."""

import io
import zipfile
from collections.abc import Callable

import numpy as np
from jaxtyping import Real

from selfpatch.data.reading.channel_axis import channel_axis, channels_last, rows_columns_channels
from selfpatch.data.reading.image_file import MAX_BYTES, UnreadableImage

_NUMBERS = {"u": "unsigned", "i": "signed", "f": "float"}
_HEADER_BYTES = 2**12
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_numpy(
    data: bytes, format_: str
) -> tuple[tuple[int, int, int], str, int, Callable[[], Real[np.ndarray, "H W C"]]]:
    """Rows, columns and channels; the kind of number, its bits, and what reads the array."""
    archive, member = None, ""
    head = data[:_HEADER_BYTES]
    if format_ == "NPZ":
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if len(members) != 1:
            raise UnreadableImage(f"an archive of {len(members)} arrays; an image is one array")
        if members[0].file_size > MAX_BYTES:
            raise UnreadableImage("an array of more bytes than any image of allowed size needs")
        member = members[0].filename
        with archive.open(member) as file:
            head = file.read(_HEADER_BYTES)
    shape, dtype = _header(head)
    axis = channel_axis(shape)
    if dtype.kind not in _NUMBERS:
        raise UnreadableImage(f"an array of {dtype.name}; images are of whole numbers or floating point")

    def load() -> Real[np.ndarray, "H W C"]:
        content = data if archive is None else archive.read(member)
        values = np.load(io.BytesIO(content), allow_pickle=False)
        return channels_last(values.astype(values.dtype.newbyteorder("="), copy=False), axis)

    return rows_columns_channels(shape, axis), _NUMBERS[dtype.kind], 8 * dtype.itemsize, load


def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise UnreadableImage(f"NumPy file of version {version}")
    shape, _, dtype = _READERS[version](stream)
    if dtype.hasobject:
        raise UnreadableImage("an array of Python objects, which are never unpickled")
    return shape, dtype
