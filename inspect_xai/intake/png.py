"""PNG: the checksum of each chunk is compared, and only what makes the pixels reaches the decoder."""

import struct
import zlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = frozenset({b"IHDR", b"IDAT", b"IEND"})
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_PALETTE = 3
_COLOR_TYPE_AT = 25
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# libpng writes chunks of 8 kB; a file of many tiny ones takes long and holds nothing.
_FREE_CHUNKS = 10_000
_BYTES_PER_CHUNK = 1024


def png_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Raises:
        struct.error: If the file ends within its header.
    """
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def png_exif(data: bytes) -> bytes:
    """Return the EXIF block, itself a TIFF file; empty where there is none."""
    return next((data[start + 8 : end - 4] for kind, start, end in _chunks(data) if kind == b"eXIf"), b"")


def read_png(data: bytes) -> NDArray[np.uint8 | np.uint16]:
    """Decode a PNG file. Text, profiles and frames of an animation are not read.

    Returns:
        uint8, or uint16 of a file with 16 bits: (H, W) of gray, else (H, W, 3) in RGB order, without alpha.

    Raises:
        PictureError: If the file is cut short, a checksum does not fit, or its stream is shorter or longer than the
            pixels that the header gives.
    """
    chunks = list(_chunks(data))
    kinds = [kind for kind, _, _ in chunks]
    if kinds[0] != b"IHDR" or chunks[0][2] != 33 or kinds.count(b"IHDR") > 1 or kinds.count(b"PLTE") > 1:
        raise _damaged("it does not begin with its header, or gives header or palette twice")
    _check_stream(data, chunks)
    if data[_COLOR_TYPE_AT] == _PALETTE:
        return _from_palette(data, chunks)
    pixels = _pixels(data[start:end] for kind, start, end in chunks if kind in _NEEDED)
    if (pixels.dtype == np.uint16) != (data[_COLOR_TYPE_AT - 1] == 16):
        raise _damaged(f"it decodes to {pixels.dtype} where its header says {data[_COLOR_TYPE_AT - 1]} bits")
    return pixels


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of each chunk, its length and checksum included, up to and with IEND."""
    offset, most = len(PNG_SIGNATURE), _FREE_CHUNKS + len(data) // _BYTES_PER_CHUNK
    for _ in range(most):
        kind, end = data[offset + 4 : offset + 8], offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        if end > len(data):
            raise PictureError("the PNG file is cut short: no IEND chunk", expected="a whole file")
        if zlib.crc32(memoryview(data)[offset + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _damaged(f"the checksum of the {kind!r} chunk at byte {offset} does not fit")
        yield kind, offset, end
        if kind == b"IEND":
            return
        offset = end
    raise PictureError(
        f"the PNG file has more than {most} chunks",
        expected=f"at most {_FREE_CHUNKS} and one for each {_BYTES_PER_CHUNK} bytes",
        remedy="look where the file comes from; write it again",
    )


def _check_stream(data: bytes, chunks: list[tuple[bytes, int, int]]) -> None:
    """Inflate the stream without keeping it: the decoder would inflate whatever lies behind the last row.

    Raises:
        PictureError: If it does not hold exactly the bytes that the header asks for.
    """
    width, height, depth, color, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if color not in _CHANNELS:
        raise _damaged(f"color type {color}")
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in passes]
    row_bits = _CHANNELS[color] * depth
    left = sum(rows * (1 + (columns * row_bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0)
    inflate = zlib.decompressobj()
    try:
        for kind, start, end in chunks:
            stream = data[start + 8 : end - 4] if kind == b"IDAT" else b""
            while stream and left >= 0:
                left -= len(inflate.decompress(stream, 1 << 20))
                stream = inflate.unconsumed_tail
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if left or not inflate.eof:
        raise _damaged(
            f"its stream {'goes on behind' if left < 0 else 'ends before'} the last row of the header's size"
        )


def _pixels(chunks: Iterable[bytes]) -> NDArray[np.uint8 | np.uint16]:
    needed = np.frombuffer(PNG_SIGNATURE + b"".join(chunks), np.uint8)
    pixels = cv2.imdecode(needed, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if pixels is None:
        raise _damaged("the decoder gives nothing")
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def _from_palette(data: bytes, chunks: list[tuple[bytes, int, int]]) -> NDArray[np.uint8]:
    """Decode the indices as gray: the decoder makes those outside the palette black."""
    depth = data[_COLOR_TYPE_AT - 1]
    header = b"IHDR" + data[16:_COLOR_TYPE_AT] + b"\0" + data[_COLOR_TYPE_AT + 1 : 29]
    as_gray = bytes([0, 0, 0, 13]) + header + zlib.crc32(header).to_bytes(4, "big")
    gray = _pixels([as_gray, *(data[start:end] for kind, start, end in chunks if kind in (b"IDAT", b"IEND"))])
    indices = gray // (255 // ((1 << depth) - 1))
    entries = b"".join(data[start + 8 : end - 4] for kind, start, end in chunks if kind == b"PLTE")
    palette = np.frombuffer(entries[: len(entries) // 3 * 3], np.uint8).reshape(-1, 3)
    if (highest := int(indices.max())) >= len(palette):
        raise _damaged(f"a pixel has color {highest} of a palette of {len(palette)}")
    return np.asarray(palette[indices])


def _damaged(why: str) -> PictureError:
    return PictureError(
        f"the PNG file is damaged, its pixels do not decode: {why}",
        expected="a whole file as the camera wrote it",
        remedy="take the picture again; see whether the file was cut or changed on its way",
    )
