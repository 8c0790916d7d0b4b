"""JPEG: the structure is read first, then libjpeg-turbo decodes, and each of its warnings refuses the picture."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from inspect_xai.errors import PictureError

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_COEFFICIENTS = 64  # of a block of 8 x 8 pixels
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_HEADER_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_SCAN_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed 0xFF nor a restart marker
_COLORSPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}

# What real files keep by far: a progressive file has some ten scans, a profile of 16 MB 255 segments.
MAX_SCANS = 100
_MAX_SEGMENTS = 10_000
_MAX_FILL_BYTES = 1 << 16
_MAX_STRAY_BYTES = 8  # between two segments, as some webcams write them; a lost marker leaves more


@dataclass(frozen=True, slots=True)
class _Segment:
    marker: int
    start: int  # of the marker's 0xFF
    body: int  # behind the marker: offset of the length field, where there is one
    end: int  # behind the segment; of a scan, behind its header


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels from the frame header.

    Raises:
        PictureError: If the file is cut short or has no frame header.
    """
    height, width, _ = _frame(data)
    return height, width


def jpeg_exif(data: bytes) -> bytes:
    """Return the body of the first EXIF block, itself a TIFF file; empty where there is none."""
    for segment in _header(data):
        if segment.marker == _EXIF and data[segment.body + 2 : segment.body + 8] == b"Exif\0\0":
            return data[segment.body + 8 : segment.end]
    return b""


def read_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file as OpenCV does, bit by bit, but listen to what libjpeg-turbo says meanwhile.

    Returns:
        uint8 (H, W) of a gray file, else (H, W, 3) in RGB order. CMYK is taken for inverted, as Adobe writes it.

    Raises:
        PictureError: If the file is cut short, its structure lies outside the limits, or the decoder warns.
    """
    header = list(_header(data))
    scans = _scans(data, header[-1])
    components = _frame(data)[2]
    if components not in _COLORSPACES:
        raise PictureError(f"the JPEG file has {components} color components", expected="1, 3 or 4")
    try:
        pixels = simplejpeg.decode_jpeg(_without_stray_bytes(data, header), _COLORSPACES[components], strict=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise PictureError(
            f"the JPEG file is damaged: {error}",
            expected="a scan that the decoder reads without a warning",
            remedy="take the picture again; see whether the file was cut or changed on its way",
        ) from error
    _check_complete(data, header, scans)
    return _without_black(pixels) if components == 4 else np.asarray(pixels[..., 0] if components == 1 else pixels)


def _without_black(cmyk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverted CMYK (H, W, 4) to RGB in OpenCV's whole numbers."""
    black = cmyk[..., 3:].astype(np.uint16)
    return (black - ((255 - cmyk[..., :3]) * black >> 8)).astype(np.uint8)


def _frame(data: bytes) -> tuple[int, int, int]:
    """Return (height, width, number of components)."""
    for segment in _header(data):
        if segment.marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, segment.body + 3)
            return height, width, components
    raise PictureError("the JPEG file has no frame header", expected="a whole file")


def _header(data: bytes) -> Iterator[_Segment]:
    """Yield the segments up to and with the first scan's header."""
    offset, fill = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _HEADER_MARKER.search(data, offset)
        if found is None or found.end() + 2 > len(data) or data[found.end() - 1] == _END:
            raise PictureError("the JPEG file is cut short: it ends in its header, no marker of a scan")
        padding = data.count(b"\xff", offset, found.start())
        fill += padding
        _check_gap(found.start() - offset - padding, fill, offset)
        segment = _segment(data, found)
        yield segment
        if segment.marker == _SCAN:
            return
        offset = segment.end
    raise PictureError(
        f"the JPEG header has more than {_MAX_SEGMENTS} segments",
        expected=f"at most {_MAX_SEGMENTS}",
        remedy="look where the file comes from; write it again",
    )


def _segment(data: bytes, found: re.Match[bytes]) -> _Segment:
    marker, body = data[found.end() - 1], found.end()
    length = 0 if marker in _WITHOUT_LENGTH else max(2, struct.unpack_from(">H", data, body)[0])
    return _Segment(marker, found.start(), body, body + length)


def _check_gap(stray: int, fill: int, offset: int) -> None:
    if stray > _MAX_STRAY_BYTES:
        raise PictureError(
            f"the JPEG file has {stray} stray bytes at byte {offset}, where a marker must stand",
            expected=f"at most {_MAX_STRAY_BYTES}, as some cameras write them",
            remedy="take the picture again: the marker of a segment may be lost",
        )
    if fill > _MAX_FILL_BYTES:
        raise PictureError(
            f"the JPEG header has {fill} fill bytes", expected=f"at most {_MAX_FILL_BYTES}", remedy="write it again"
        )


def _scans(data: bytes, first: _Segment) -> list[_Segment]:
    """Return the scans' headers, from the first one to the end marker.

    Raises:
        PictureError: If there is no end marker, or more scans than any encoder writes.
    """
    offset, scans = first.end, [first]
    while (found := _SCAN_MARKER.search(data, offset)) is not None:
        if data[found.end() - 1] == _END:
            return scans
        if found.end() + 2 > len(data):
            break
        segment = _segment(data, found)
        scans += [segment] if segment.marker == _SCAN else []
        if len(scans) > MAX_SCANS:
            raise PictureError(
                f"the JPEG file has more than {MAX_SCANS} scans",
                expected=f"at most {MAX_SCANS}; encoders write some ten",
                remedy="look where the file comes from; write it again as a baseline JPEG",
            )
        offset = segment.end
    raise PictureError("the JPEG file is cut short: no end marker", expected="a whole file")


def _check_complete(data: bytes, header: list[_Segment], scans: list[_Segment]) -> None:
    """See that the scans bring each component whole: libjpeg-turbo says nothing of a scan that is not there.

    Raises:
        PictureError: If a component, or a coefficient of its blocks, or the last bit of one, is in no scan.
    """
    frame = next(segment for segment in header if segment.marker in _FRAMES)
    identities = data[frame.body + 8 : frame.body + 8 + 3 * data[frame.body + 7] : 3]
    missing = {identity: set(range(_COEFFICIENTS)) for identity in identities}
    for scan in scans:
        parameters = scan.body + 3 + 2 * data[scan.body + 2]
        first, last, bits = data[parameters : parameters + 3].ljust(3, b"\xff")
        if frame.marker not in _PROGRESSIVE:
            first, last, bits = 0, _COEFFICIENTS - 1, 0
        if bits & 0x0F == 0:  # down to the last bit
            for identity in data[scan.body + 3 : parameters : 2]:
                missing.get(identity, set()).difference_update(range(first, last + 1))
    if incomplete := sum(map(bool, missing.values())):
        raise PictureError(
            f"the JPEG file is cut short: its {len(scans)} scans leave {incomplete} of {len(missing)} color "
            "components incomplete",
            expected="scans that bring every component down to its last bit",
            remedy="take the picture again; see whether the file was cut on its way",
        )


def _without_stray_bytes(data: bytes, header: list[_Segment]) -> bytes:
    """Leave out what stands between the header's segments, which libjpeg passes over with a warning."""
    if all(one.end == other.start for one, other in zip([_Segment(0xD8, 0, 2, 2), *header], header, strict=False)):
        return data
    parts = [data[segment.start : segment.end] for segment in header]
    return b"".join([data[:2], *parts, data[header[-1].end :]])
