"""From a file's bytes to pixels: size read from the header first, so that a small file cannot ask for all memory."""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

# A network's first block end is rarely finer than every eighth pixel: below this there is nothing to look at.
_MIN_SIDE_PX = 8
# 16-bit RGBA without compression, and room for a header: no honest file of max_pixels is larger.
_BYTES_PER_PIXEL = 8
_HEADER_BYTES = 1 << 20

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What a picture may be.

    Attributes:
        max_pixels: Larger pictures are refused before they are decoded; 100 million is a 16k x 6k line scan.
        white_level: The value of a 16-bit file that counts as full white; 4095 for a 12-bit camera. The card speaks
            of 8-bit pixels: a value v becomes round(255 * v / white_level), and everything above is white.
        honour_exif: Turn the picture as its EXIF orientation says. Off: the sensor's own rows and columns, which is
            what a fixed camera's masks and regions of interest are drawn on.
    """

    max_pixels: int = 100_000_000
    white_level: int = 65_535
    honour_exif: bool = False

    @property
    def max_bytes(self) -> int:
        """A file longer than this is not read."""
        return self.max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES


DEFAULT_LIMITS = PictureLimits()


def decode_picture(data: bytes, *, limits: PictureLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Turn a file's bytes into pixels.

    Args:
        data: The whole file.
        limits: What is accepted.

    Returns:
        uint8 (H, W), or (H, W, 3) in RGB order; an alpha channel is dropped, CMYK becomes RGB, 16 bits become 8 as
        `PictureLimits.white_level` says. Of a file with several pages or frames, the first.

    Raises:
        PictureError: If the bytes are no PNG, JPEG, BMP or TIFF, are cut short, or lie outside the limits.
    """
    height, width = picture_size(data)
    if height * width > limits.max_pixels:
        raise PictureError(
            f"the header claims {width} x {height} = {width * height} pixels",
            expected=f"at most {limits.max_pixels}",
            remedy="raise max_pixels if the camera is that large; else look where the file comes from",
        )
    if min(height, width) < _MIN_SIDE_PX:
        raise PictureError(f"the picture is {width} x {height} pixels", expected=f"{_MIN_SIDE_PX} or more a side")
    _refuse_cut_short(data)
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    if not limits.honour_exif:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with quiet_codecs():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise PictureError(f"the picture does not decode: {error}", remedy="take it again") from error
    if pixels is None:
        raise PictureError(
            "the header is that of a picture, but its pixels do not decode",
            expected="a whole file",
            remedy="see whether the camera finished writing; PNG without compression shows damage soonest",
        )
    return _as_rgb(_as_8_bit(np.asarray(pixels), limits.white_level))


def picture_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) in pixels from the header alone.

    Raises:
        PictureError: If the bytes do not begin as a PNG, JPEG, BMP or TIFF file.
    """
    if not data:
        raise PictureError("the file is empty", remedy="see whether the camera or its disk is full")
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"\xff\xd8\xff"):
            width, height = _jpeg_size(data)
        elif data.startswith(b"BM"):
            width, height = _bmp_size(data)
        elif data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
            width, height = _tiff_size(data)
        else:
            raise PictureError(f"the file begins with {data[:8]!r}", expected="a PNG, JPEG, BMP or TIFF file")
    except struct.error as error:
        raise PictureError(f"the file ends within its header: {len(data)} bytes", expected="a whole file") from error
    return height, width


def memory_for(data: bytes) -> int:
    """Return how many bytes a file and its pixels in colour will take; of no picture, the file's own."""
    try:
        height, width = picture_size(data)
    except PictureError:
        return len(data)
    return len(data) + 3 * height * width


def hash_of_pixels(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 of decoded pixels and their shape: the same for one picture in two file formats."""
    digest = hashlib.sha256(np.array(pixels.shape, "<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def too_long(size: int, max_bytes: int) -> PictureError:
    """Return the error for a file of `size` bytes."""
    return PictureError(
        f"the file has {size} bytes",
        expected=f"at most {max_bytes}, which any picture of max_pixels fits in",
        remedy="raise max_pixels if the camera is that large",
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, offset in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, offset + 3)
            return width, height
    raise PictureError("the JPEG file has no frame header", expected="a whole file")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, offset of its length field) up to and with the first scan."""
    offset = 2
    while True:
        if offset + 4 > len(data):
            raise PictureError("the JPEG file is cut short: it ends in its header", expected="a whole file")
        lead, marker = data[offset], data[offset + 1]
        if lead != 0xFF:
            raise PictureError(f"the JPEG file has {lead:#x} where a marker must stand", expected="a whole file")
        if marker == 0xFF:  # padding
            offset += 1
            continue
        offset += 2
        yield marker, offset
        if marker == _JPEG_SCAN:
            return
        if marker not in _JPEG_WITHOUT_LENGTH:
            offset += max(2, struct.unpack_from(">H", data, offset)[0])


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH", data, 18) if header_bytes == 12 else struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: rows run top down


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    directory = struct.unpack_from(f"{order}Q", data, 8)[0] if big else struct.unpack_from(f"{order}I", data, 4)[0]
    count_code, entry_bytes, value_at = ("Q", 20, 12) if big else ("H", 12, 8)
    if directory + struct.calcsize(count_code) > len(data):
        raise PictureError("the TIFF file ends before its directory", expected="a whole file")
    (count,) = struct.unpack_from(order + count_code, data, directory)
    found = {}
    for index in range(min(count, 4096)):
        entry = directory + struct.calcsize(count_code) + index * entry_bytes
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            code = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if code is None:
                raise PictureError(f"the TIFF file gives its size as type {kind}", expected="type 3, 4 or 16")
            (found[tag],) = struct.unpack_from(order + code, data, entry + value_at)
    if len(found) < 2:
        raise PictureError("the TIFF file does not give its size", expected="tags 256 and 257")
    return found[_TIFF_WIDTH], found[_TIFF_HEIGHT]


def _refuse_cut_short(data: bytes) -> None:
    """Refuse files whose end is missing: some decoders fill the rest with gray and say nothing.

    Raises:
        PictureError: If a PNG has no IEND chunk or a JPEG no end marker after its scan.
    """
    if data.startswith(b"\x89PNG"):
        offset = 8
        while data[offset + 4 : offset + 8] != b"IEND":
            offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
            if offset >= len(data):
                raise PictureError("the PNG file is cut short: no IEND chunk", expected="a whole file")
    elif data.startswith(b"\xff\xd8"):
        # Inside a scan 0xFF is always followed by 0x00 or a restart marker, so an end marker there is the real one.
        *_, (_, scan) = _jpeg_segments(data)
        if data.find(b"\xff\xd9", scan) < 0:
            raise PictureError("the JPEG file is cut short: no end marker", expected="a whole file")


def _as_8_bit(pixels: NDArray[np.generic], white_level: int) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if pixels.dtype != np.uint16:
        raise PictureError(f"the pixels are {pixels.dtype}", expected="8 or 16 bits without sign")
    return np.asarray(_to_8_bit(white_level)[pixels])


@lru_cache(maxsize=4)
def _to_8_bit(white_level: int) -> NDArray[np.uint8]:
    values = np.arange(65_536, dtype=np.int64)
    return np.minimum((values * 510 + white_level) // (2 * white_level), 255).astype(np.uint8)


def _as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., 2::-1])  # the codecs give BGR, sometimes with alpha behind


@contextmanager
def quiet_codecs() -> Iterator[None]:
    """Keep the codecs from writing to stderr what comes back as a PictureError anyway.

    The level is the process's: threads that decode side by side are to run inside one such block of their own.
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
