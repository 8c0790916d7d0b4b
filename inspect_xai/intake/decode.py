"""From a file's bytes to pixels: size read from the header first, so that a small file cannot ask for all memory."""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError
from inspect_xai.intake.jpeg import jpeg_exif, jpeg_size, read_jpeg
from inspect_xai.intake.png import PNG_SIGNATURE, png_exif, png_size, read_png
from inspect_xai.intake.tiff import read_tiff, tiff_orientation, tiff_size
from inspect_xai.records import PictureLimits

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

# A network's first block end is rarely finer than every eighth pixel: below this there is nothing to look at.
_MIN_SIDE_PX = 8
_BMP_RLE = {1: 8, 2: 4}  # bits a pixel, by how the rows are coded
_BMP_MASKS, _BMP_WITH_PROFILE = 3, 124


def decode_picture(data: bytes, *, limits: PictureLimits) -> NDArray[np.uint8]:
    """Turn a file's bytes into pixels. Whatever a decoder warns of refuses the picture.

    Args:
        data: The whole file.
        limits: What is accepted.

    Returns:
        uint8 (H, W), or (H, W, 3) in RGB order; an alpha channel is dropped, CMYK becomes RGB, 16 bits become 8 as
        `PictureLimits.white_level` says. Of a file with several pages or frames, the first.

    Raises:
        PictureError: If the bytes are no PNG, JPEG, BMP or TIFF, are cut short or damaged, or lie outside the limits.
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
    try:
        pixels, white = _read(data, limits)
        orientation = _orientation(data) if limits.honour_exif else 1
    except struct.error as error:
        raise PictureError(f"the file ends within its header: {len(data)} bytes", expected="a whole file") from error
    if pixels.shape[:2] != (height, width):
        raise PictureError(
            f"the file decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels",
            expected=f"{width} x {height}, as its header says",
            remedy="write the file again",
        )
    return _turned(_as_8_bit(pixels, white), orientation)


def _read(data: bytes, limits: PictureLimits) -> tuple[NDArray[np.uint8 | np.uint16], int]:
    """Return (pixels, value that counts as white)."""
    if data.startswith(PNG_SIGNATURE):
        with quiet_codecs():
            return read_png(data), limits.white_level
    if data.startswith(b"BM"):
        return _read_bmp(data), limits.white_level
    if data.startswith(b"\xff\xd8"):
        return read_jpeg(data), limits.white_level
    return read_tiff(data, white_level=limits.white_level, max_pixels=limits.max_pixels)


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none."""
    if data.startswith(b"BM"):
        return 1
    block = png_exif(data) if data.startswith(PNG_SIGNATURE) else data
    if data.startswith(b"\xff\xd8"):
        block = jpeg_exif(data)
    return tiff_orientation(block) if block else 1


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and mirror as EXIF's eight orientations say; a value that means nothing leaves the picture as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def picture_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) in pixels from the header alone.

    Raises:
        PictureError: If the bytes do not begin as a PNG, JPEG, BMP or TIFF file.
    """
    if not data:
        raise PictureError("the file is empty", remedy="see whether the camera or its disk is full")
    try:
        if data.startswith(PNG_SIGNATURE):
            return png_size(data)
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg_size(data)
        if data.startswith(b"BM"):
            return _bmp_size(data)
        if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
            return tiff_size(data)
    except struct.error as error:
        raise PictureError(f"the file ends within its header: {len(data)} bytes", expected="a whole file") from error
    raise PictureError(f"the file begins with {data[:8]!r}", expected="a PNG, JPEG, BMP or TIFF file")


def memory_for(data: bytes) -> int:
    """Return how many bytes a file and its pixels in color will take; of no picture, the file's own."""
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


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH", data, 18) if header_bytes == 12 else struct.unpack_from("<ii", data, 18)
    return abs(height), abs(width)  # a negative height: rows run top down


def _read_bmp(data: bytes) -> NDArray[np.uint8]:
    """Decode a BMP file.

    Raises:
        PictureError: If its rows are not all there, its header contradicts itself, or they do not decode.
    """
    _check_bmp(data)
    with quiet_codecs():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if pixels is None or pixels.dtype != np.uint8:
        raise _damaged_bmp("its pixels do not decode", "rows as the header describes them")
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1], np.uint8)


def _check_bmp(data: bytes) -> None:
    """Compare the lengths of header, rows and file: BMP has no checksum, and a wrong width shears the picture."""
    start, header_bytes = struct.unpack_from("<II", data, 10)
    if header_bytes == 12:
        (bits,), coding, stated, colors = struct.unpack_from("<H", data, 24), 0, 0, 0
        entry_bytes = 3
    else:
        bits, coding, stated = struct.unpack_from("<HII", data, 28)
        (colors,), entry_bytes = struct.unpack_from("<I", data, 46), 4
    colors = colors or (1 << bits if bits <= 8 else 0)
    masks = 12 if coding == _BMP_MASKS and header_bytes == 40 else 0
    if start < 14 + header_bytes + masks + entry_bytes * colors:
        raise _damaged_bmp(f"its rows begin at byte {start}", "them behind header and palette")
    if not stated and header_bytes < _BMP_WITH_PROFILE and struct.unpack_from("<I", data, 2)[0] == len(data):
        stated = len(data) - start
    height, width = _bmp_size(data)
    rows = height * (-(-width * bits // 32) * 4)
    if coding in (0, _BMP_MASKS) and (start + rows > len(data) or (stated and not rows <= stated <= rows + 3)):
        raise _damaged_bmp(
            f"{width} x {height} pixels of {bits} bits take {rows} bytes, {stated} stated, {len(data) - start} there",
            "one number",
        )
    if coding in _BMP_RLE and not _runs_fill(data[start:], height, width, bits=_BMP_RLE[coding]):
        raise _damaged_bmp("its runs leave pixels out", f"runs for all of {width} x {height} pixels")


def _runs_fill(runs: bytes, height: int, width: int, *, bits: int) -> bool:
    """Whether run-length code gives every pixel: the decoder makes those it skips the palette's first color."""
    at, row, column = 0, 0, 0
    while at + 1 < len(runs) and column <= width:
        count, value = runs[at], runs[at + 1]
        at += 2
        if count:
            column += count
        elif value > 2:  # that number of pixels, one by one, padded to whole words
            column += value
            at += -(-value * bits // 16) * 2
        elif value == 0 and column == width:
            row, column = row + 1, 0
        elif value == 1:
            break
        else:
            return False
    return (row, column) in ((height, 0), (height - 1, width))


def _damaged_bmp(found: str, expected: str) -> PictureError:
    return PictureError(
        f"the BMP file is damaged or cut short: {found}",
        expected=expected,
        remedy="see whether the camera finished writing; PNG shows damage soonest",
    )


def _as_8_bit(pixels: NDArray[np.uint8 | np.uint16], white_level: int) -> NDArray[np.uint8]:
    return np.asarray(pixels if pixels.dtype == np.uint8 else _to_8_bit(white_level)[pixels], np.uint8)


@lru_cache(maxsize=4)
def _to_8_bit(white_level: int) -> NDArray[np.uint8]:
    values = np.arange(65_536, dtype=np.int64)
    return np.minimum((values * 510 + white_level) // (2 * white_level), 255).astype(np.uint8)


@contextmanager
def quiet_codecs() -> Iterator[None]:
    """Keep the codecs from writing to stderr what comes back as a PictureError anyway.

    The level is the process's: threads that decode side by side each need such a block.
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
