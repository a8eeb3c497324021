"""PNG and TIFF files made byte by byte from the formats' specifications, in every kind that they allow."""

import struct
import zlib

import numpy as np

# 1. PNG

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(
    samples: np.ndarray, bits: int, color_type: int, *, interlaced: bool = False, chunks: tuple[bytes, ...] = ()
) -> bytes:
    """Samples [H, W] or [H, W, S]; `chunks` stand before the pixels."""

    def lines(part: np.ndarray) -> bytes:
        return b"".join(b"\0" + packed_row(row.ravel(), bits, ">") for row in part) if part.size else b""

    passes = [samples[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, color_type, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(map(lines, passes)))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    )


def packed_row(samples: np.ndarray, bits: int, byte_order: str) -> bytes:
    """Most significant bit first; samples of 16 and 32 bits in the byte order of the file."""
    if bits in (8, 16, 32):
        kind = "f" if samples.dtype.kind == "f" else "i" if samples.min() < 0 else "u"
        return samples.astype(f"{byte_order}{kind}{bits // 8}").tobytes()
    digits = "".join(f"{int(sample):0{bits}b}" for sample in samples)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))


# 2. TIFF

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def tiff_bytes(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    byte_order: str = "<",
    planar: bool = False,
    compression: str = "none",
    rows_per_strip: int = 4,
    reversed_bits: bool = False,
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """Samples [H, W, S]; `tags` are further ones, of 16-bit numbers."""
    rows, columns, channels = samples.shape
    planes = [samples[..., [i]] for i in range(channels)] if planar else [samples]
    encode = {"none": bytes, "lzw": lzw, "deflate": zlib.compress, "packbits": packbits}[compression]
    strips = []
    for plane in planes:
        for top in range(0, rows, rows_per_strip):
            data = b"".join(packed_row(row.ravel(), bits, byte_order) for row in plane[top : top + rows_per_strip])
            data = encode(data)
            strips.append(data.translate(REVERSED) if reversed_bits else data)
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (columns,)),
        257: ("I", (rows,)),
        258: ("H", (bits,) * channels),
        259: ("H", (COMPRESSIONS[compression],)),
        262: ("H", (photometric,)),
        266: ("H", (2 if reversed_bits else 1,)),
        273: ("I", tuple(offsets)),
        277: ("H", (channels,)),
        278: ("I", (rows_per_strip,)),
        279: ("I", tuple(map(len, strips))),
        284: ("H", (2 if planar else 1,)),
        **{tag: ("H", values) for tag, values in (tags or {}).items()},
    }
    return tiff_header(byte_order, 8 + len(body)) + body + directory(entries, byte_order, 8 + len(body))


def tiff_header(byte_order: str, start: int) -> bytes:
    return (b"II" if byte_order == "<" else b"MM") + struct.pack(byte_order + "HI", 42, start)


def directory(
    entries: dict[int, tuple[str, tuple[int, ...]]], byte_order: str, start: int, next_start: int = 0
) -> bytes:
    """An IFD, followed by the values that are longer than four bytes."""
    behind = start + 2 + 12 * len(entries) + 4
    fields, values = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        value = struct.pack(byte_order + kind * len(numbers), *numbers)
        fields += struct.pack(byte_order + "HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        if len(value) <= 4:
            fields += value.ljust(4, b"\0")
        else:
            fields += struct.pack(byte_order + "I", behind + len(values))
            values += value + b"\0" * (len(value) % 2)
    return struct.pack(byte_order + "H", len(entries)) + fields + struct.pack(byte_order + "I", next_start) + values


def packbits(data: bytes) -> bytes:
    """Literal runs alone."""
    parts = [data[i : i + 128] for i in range(0, len(data), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def lzw(data: bytes) -> bytes:
    """Codes of 9 bits alone: the table is cleared before it outgrows them."""
    codes = []
    for i in range(0, len(data), 200):
        codes += [256, *data[i : i + 200]]
    digits = "".join(f"{code:09b}" for code in [*codes, 257])
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
