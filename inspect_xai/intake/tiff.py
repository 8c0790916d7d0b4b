"""TIFF: strips and tiles are unpacked strictly, and every tag that changes a pixel is honored or refused."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from inspect_xai.errors import PictureError
from inspect_xai.intake.jpeg import jpeg_size, read_jpeg

Samples = NDArray[np.uint8 | np.uint16]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_T4_OPTIONS, _PREDICTOR, _COLORMAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 292, 317, 320, 322, 323, 324
_TILE_BYTES, _SAMPLE_FORMAT, _JPEG_TABLES = 325, 339, 347
_WANTED = frozenset(
    {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES}
    | {_ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _T4_OPTIONS, _PREDICTOR, _COLORMAP, _TILE_WIDTH, _TILE_HEIGHT}
    | {_TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT, _JPEG_TABLES}
)
_CODES = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}
_MAX_ENTRIES = 4096
_MAX_BITS_OF_A_PIXEL = 64  # 16-bit RGBA

_NONE, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 7, 8, 32946, 32773
_FAX = {2: "tiff_ccitt", 3: "group3", 4: "group4"}
_COMPRESSIONS = frozenset({_NONE, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS, *_FAX})
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_BITS_OF = {
    _WHITE_IS_ZERO: (1, 2, 4, 8, 10, 12, 14, 16),
    _BLACK_IS_ZERO: (1, 2, 4, 8, 10, 12, 14, 16),
    _RGB: (8, 10, 12, 14, 16),
    _PALETTE: (1, 2, 4, 8),
    _CMYK: (8,),
    _YCBCR: (8,),
}
_FORMATS = {1: "uint", 2: "int", 3: "float", 5: "complex int", 6: "complex"}
_TURNED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_REWRITE = "write the picture as an 8 or 16 bit TIFF, gray or RGB, uncompressed or with LZW or deflate"


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the first directory says. A strip is a tile as wide as the picture."""

    order: str
    tags: dict[int, tuple[int, ...]]
    height: int
    width: int
    bits: int
    samples: int
    tile_height: int
    tile_width: int
    tiled: bool

    def tag(self, number: int, default: int) -> int:
        return self.tags.get(number, (default,))[0]

    @property
    def compression(self) -> int:
        return self.tag(_COMPRESSION, _NONE)

    @property
    def photometric(self) -> int:
        return self.tag(_PHOTOMETRIC, -1)

    @property
    def samples_of_a_plane(self) -> int:
        return 1 if self.planes > 1 else self.samples

    @property
    def planes(self) -> int:
        return self.samples if self.tag(_PLANAR, 1) == 2 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a strip or tile."""
        return (self.tile_width * self.samples_of_a_plane * self.bits + 7) // 8

    @property
    def pieces_of_a_plane(self) -> int:
        """Number of strips or tiles."""
        return -(-self.height // self.tile_height) * -(-self.width // self.tile_width)

    def places(self) -> list[tuple[int, int, int]]:
        """(row, column, rows) of each strip or tile of a plane, in the file's order."""
        return [
            (y, x, self.tile_height if self.tiled else min(self.tile_height, self.height - y))
            for y in range(0, self.height, self.tile_height)
            for x in range(0, self.width, self.tile_width)
        ]


def tiff_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels as the first directory gives them.

    Raises:
        PictureError: If the directory is cut short, gives a tag twice, or does not give the size.
        struct.error: If the file ends within its directory.
    """
    return _size(_directory(data)[1])


def tiff_orientation(data: bytes) -> int:
    """Return the value of tag 274, 1 where there is none. An EXIF block is a TIFF file of this kind.

    Raises:
        PictureError: If the directory is cut short or gives a tag twice.
        struct.error: If the file ends within its directory.
    """
    return _directory(data)[1].get(_ORIENTATION, (1,))[0]


def read_tiff(data: bytes, *, white_level: int, max_pixels: int) -> tuple[Samples, int]:
    """Decode the first page as its tags say; the orientation is left to the caller.

    Args:
        data: The whole file.
        white_level: The value of a file with more than 8 bits that counts as white.
        max_pixels: What the tiles may cover, their margins outside the picture included.

    Returns:
        (pixels, white): uint8 or uint16, (H, W) of gray, else (H, W, 3) in RGB order, without extra samples, and the
        value that counts as white: never more than the file's bits can hold.

    Raises:
        PictureError: If a strip or tile is missing, damaged or cut short, or a tag asks for what is not read here.
    """
    layout = _layout(data)
    if (covered := _covered(layout)) > max_pixels:
        raise PictureError(
            f"the TIFF file's tiles cover {covered} pixels for a picture of {layout.width} x {layout.height}",
            expected=f"at most {max_pixels}",
            remedy="write it with smaller tiles, or raise max_pixels",
        )
    planes = [_plane(data, layout, index) for index in range(layout.planes)]
    return _in_color(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), layout, white_level)


# --- tags


def _directory(data: bytes) -> tuple[str, dict[int, tuple[int, ...]]]:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    start = struct.unpack_from(f"{order}Q", data, 8)[0] if big else struct.unpack_from(f"{order}I", data, 4)[0]
    count_code, entry_bytes, size_code = ("Q", 20, "Q") if big else ("H", 12, "I")
    if start + struct.calcsize(count_code) > len(data):
        raise PictureError("the TIFF file ends before its directory", expected="a whole file")
    (entries,) = struct.unpack_from(order + count_code, data, start)
    if entries > _MAX_ENTRIES:
        raise PictureError(f"the TIFF directory claims {entries} tags", expected=f"at most {_MAX_ENTRIES}")
    tags: dict[int, tuple[int, ...]] = {}
    seen = set()
    for index in range(entries):
        entry = start + struct.calcsize(count_code) + index * entry_bytes
        tag, kind, count = struct.unpack_from(f"{order}HH{size_code}", data, entry)
        if tag in seen:
            raise PictureError(
                f"the TIFF file gives tag {tag} twice", expected="each tag once", remedy="write the file again"
            )
        seen.add(tag)
        if tag in _WANTED:
            tags[tag] = _values(data, order, (tag, kind, count), at=entry + (12 if big else 8), offset_code=size_code)
    return order, tags


def _size(tags: dict[int, tuple[int, ...]]) -> tuple[int, int]:
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise PictureError("the TIFF file does not give its size", expected="tags 256 and 257")
    return tags[_HEIGHT][0], tags[_WIDTH][0]


def _values(data: bytes, order: str, entry: tuple[int, int, int], *, at: int, offset_code: str) -> tuple[int, ...]:
    tag, kind, count = entry
    code = _CODES.get(kind)
    if code is None:
        raise PictureError(f"the TIFF file gives tag {tag} as type {kind}", expected="whole numbers without sign")
    size = struct.calcsize(code) * count
    if size > struct.calcsize(offset_code):
        (at,) = struct.unpack_from(order + offset_code, data, at)
    if not count or at + size > len(data):
        raise PictureError(f"the TIFF file ends within the values of tag {tag}", expected="a whole file")
    return struct.unpack_from(f"{order}{count}{code}", data, at)


def _layout(data: bytes) -> _Layout:
    order, tags = _directory(data)
    height, width = _size(tags)
    tiled = _TILE_WIDTH in tags
    rows = tags.get(_TILE_HEIGHT if tiled else _ROWS_PER_STRIP, (height,))[0]
    layout = _Layout(
        order=order,
        tags=tags,
        height=height,
        width=width,
        bits=tags.get(_BITS, (1,))[0],
        samples=tags.get(_SAMPLES, (1,))[0],
        tile_height=rows if tiled else min(rows, height),
        tile_width=tags[_TILE_WIDTH][0] if tiled else width,
        tiled=tiled,
    )
    _check(layout)
    return layout


def _check(layout: _Layout) -> None:
    """Refuse what the tags ask for and what is not done here.

    Raises:
        PictureError: With the tag's value.
    """
    _check_samples(layout)
    _check_compression(layout)
    if layout.tag(_SUBFILE, 0) & 0b101:
        raise _unreadable("a first page that is a thumbnail or a mask", "the picture itself as the first page")
    if min(layout.tile_height, layout.tile_width) < 1:
        raise _unreadable(f"tiles of {layout.tile_width} x {layout.tile_height} pixels", "one pixel or more a side")


def _check_samples(layout: _Layout) -> None:
    formats = {_FORMATS.get(kind, "uint") for kind in layout.tags.get(_SAMPLE_FORMAT, (1,))}
    if formats != {"uint"}:
        raise _unreadable(f"samples of type {'/'.join(sorted(formats))}{layout.bits}", "whole numbers without sign")
    if layout.photometric not in _COLORS:
        raise _unreadable(f"photometric interpretation {layout.photometric}", f"one of {sorted(_COLORS)}")
    if layout.bits not in _BITS_OF[layout.photometric] or len(set(layout.tags.get(_BITS, (1,)))) > 1:
        bits = "/".join(map(str, layout.tags.get(_BITS, (1,))))
        raise _unreadable(f"{bits} bits a sample", f"one of {_BITS_OF[layout.photometric]}, the same for all")
    fewest = _COLORS[layout.photometric]
    if layout.samples < fewest or layout.samples * layout.bits > _MAX_BITS_OF_A_PIXEL:
        raise _unreadable(
            f"{layout.samples} samples a pixel", f"{fewest} or more, of at most {_MAX_BITS_OF_A_PIXEL} bits together"
        )


def _check_compression(layout: _Layout) -> None:
    if layout.compression not in _COMPRESSIONS:
        raise _unreadable(f"compression {layout.compression}", f"one of {sorted(_COMPRESSIONS)}")
    predictor = layout.tag(_PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and layout.bits not in (8, 16)):
        raise _unreadable(f"predictor {predictor} with {layout.bits} bits", "1, or 2 with 8 or 16 bits")
    jpeg = layout.compression == _JPEG
    if jpeg and (layout.bits != 8 or layout.photometric in (_CMYK, _PALETTE)):
        raise _unreadable(f"JPEG of photometric interpretation {layout.photometric}", "gray, RGB or YCbCr of 8 bits")
    if layout.photometric == _YCBCR and not jpeg:
        raise _unreadable("YCbCr samples that are not JPEG", "RGB samples")
    if layout.compression in _FAX and (layout.bits, layout.samples) != (1, 1):
        raise _unreadable(f"fax compression of {layout.bits} bits", "1 bit")


def _covered(layout: _Layout) -> int:
    across, down = -(-layout.width // layout.tile_width), -(-layout.height // layout.tile_height)
    return across * layout.tile_width * (down * layout.tile_height if layout.tiled else layout.height)


def _unreadable(found: str, expected: str) -> PictureError:
    return PictureError(f"the TIFF file has {found}, which is not read", expected=expected, remedy=_REWRITE)


def _damaged(why: str) -> PictureError:
    return PictureError(
        f"the TIFF file is damaged: {why}",
        expected="a whole file as the camera wrote it",
        remedy="take the picture again; see whether the file was cut or changed on its way",
    )


# --- strips and tiles


def _plane(data: bytes, layout: _Layout, index: int) -> Samples:
    """Return samples (H, W, samples of a plane)."""
    pieces = _pieces(data, layout)[index * layout.pieces_of_a_plane : (index + 1) * layout.pieces_of_a_plane]
    places = layout.places()
    shape = (layout.height, layout.width, layout.samples_of_a_plane)
    plane: Samples = np.empty(shape, np.uint8 if layout.bits <= 8 else np.uint16)
    for (y, x, _), piece in zip(places, _unpacked(pieces, layout), strict=True):
        plane[y : y + layout.tile_height, x : x + layout.tile_width] = piece[: layout.height - y, : layout.width - x]
    return plane


def _pieces(data: bytes, layout: _Layout) -> list[bytes]:
    offsets = layout.tags.get(_TILE_OFFSETS if layout.tiled else _STRIP_OFFSETS, ())
    counts = layout.tags.get(_TILE_BYTES if layout.tiled else _STRIP_BYTES, ())
    if len(offsets) != len(counts):
        raise _damaged(f"it gives {len(offsets)} offsets and {len(counts)} lengths of strips or tiles")
    if len(offsets) != (asked := layout.pieces_of_a_plane * layout.planes):
        raise _damaged(f"it names {len(offsets)} strips or tiles, its size asks for {asked}")
    if missing := sum(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise _damaged(f"{missing} of {len(offsets)} strips or tiles lie behind the end of the file: cut short")
    turn = layout.tag(_FILL_ORDER, 1) == 2 and layout.compression != _JPEG
    pieces = [data[offset : offset + count] for offset, count in zip(offsets, counts, strict=True)]
    return [piece.translate(_TURNED_BITS) for piece in pieces] if turn else pieces


def _unpacked(pieces: list[bytes], layout: _Layout) -> Iterator[Samples]:
    """Yield samples (rows, columns, samples of a plane) of each strip or tile."""
    rows = [rows for _, _, rows in layout.places()]
    if layout.compression == _JPEG:
        yield from (_jpeg_piece(piece, layout, count) for piece, count in zip(pieces, rows, strict=True))
        return
    if layout.compression == _LZW:
        pieces = _lzw(pieces, layout, rows)
    for piece, count in zip(pieces, rows, strict=True):
        need, most = count * layout.row_bytes, layout.tile_height * layout.row_bytes
        raw = _bytes_of(piece, layout, count, need=need, most=most)
        if len(raw) < need:
            raise _damaged(f"a strip or tile holds {len(raw)} bytes of {need}: cut short")
        yield _samples(raw[:need], layout, count)


def _bytes_of(piece: bytes, layout: _Layout, rows: int, *, need: int, most: int) -> bytes:
    if layout.compression in (_DEFLATE, _OLD_DEFLATE):
        return _deflate(piece, most)
    if layout.compression == _PACKBITS:
        return _packbits(piece, need=need, most=most)
    if layout.compression in _FAX:
        return _fax(piece, layout, rows)
    return piece


def _deflate(piece: bytes, most: int) -> bytes:
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(piece, most + 1)
    except zlib.error as error:
        raise _damaged(f"a strip or tile does not inflate: {error}") from error
    if not inflate.eof:
        raise _damaged("the deflate stream of a strip or tile has no end, or is longer than its rows")
    return raw


def _packbits(piece: bytes, *, need: int, most: int) -> bytes:
    raw, at = bytearray(), 0
    while at < len(piece) and len(raw) < need:
        head = piece[at]
        if head < 128:
            part = piece[at + 1 : at + 2 + head]
            if len(part) <= head:
                raise _damaged("a PackBits run ends behind its strip or tile")
            raw += part
            at += 2 + head
        else:
            raw += piece[at + 1 : at + 2] * (257 - head) if head > 128 else b""
            at += 2 if head > 128 else 1
    if len(raw) > most:
        raise _damaged("a PackBits run goes on behind the last row of its strip or tile")
    return bytes(raw)


def _lzw(pieces: list[bytes], layout: _Layout, rows: list[int]) -> list[bytes]:
    """Unpack all pieces at once: as strips of one gray picture; its bytes are the bytes of the rows."""
    image = _open(_strips(pieces, layout.row_bytes, sum(rows), rows=layout.tile_height, compression=_LZW), "LZW")
    raw = np.asarray(image).tobytes()
    starts = [count * layout.row_bytes for count in itertools.accumulate(rows, initial=0)]
    return [raw[start:end] for start, end in itertools.pairwise(starts)]


def _fax(piece: bytes, layout: _Layout, rows: int) -> bytes:
    """Unpack and pack again: libtiff only prints what it could not read, and goes on with white.

    Raises:
        PictureError: If packing again does not give the same bytes, all but the padding.
    """
    extra = ((_T4_OPTIONS, layout.tag(_T4_OPTIONS, 0)),) if layout.compression == 3 else ()
    image = _open(
        _strips([piece], layout.tile_width, rows, rows=rows, compression=layout.compression, bits=1, extra=extra), "fax"
    )
    again = io.BytesIO()
    image.save(again, "TIFF", compression=_FAX[layout.compression], tiffinfo={_ROWS_PER_STRIP: rows})
    written = again.getvalue()
    if _pieces(written, _layout(written))[0].rstrip(b"\0") != piece.rstrip(b"\0"):
        raise _damaged("the fax code of a strip is not what its own pixels would be coded as")
    return np.packbits(np.asarray(image), axis=1).tobytes()


def _strips(
    pieces: list[bytes],
    width: int,
    height: int,
    *,
    rows: int,
    compression: int,
    bits: int = 8,
    extra: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """Write a gray TIFF file around compressed strips."""
    lengths = [len(piece) for piece in pieces]
    numbers = {_WIDTH: width, _HEIGHT: height, _BITS: bits, _COMPRESSION: compression, _PHOTOMETRIC: 1}
    numbers |= {_SAMPLES: 1, _ROWS_PER_STRIP: rows, **dict(extra)}
    behind = 8 + 2 + 12 * (len(numbers) + 2) + 4
    first = behind + (8 * len(pieces) if len(pieces) > 1 else 0)
    offsets = (first + np.cumsum([0, *lengths[:-1]])).tolist()
    entries = [(tag, 4, 1, value) for tag, value in numbers.items()]
    entries += [(_STRIP_OFFSETS, 4, len(pieces), behind if len(pieces) > 1 else first)]
    entries += [(_STRIP_BYTES, 4, len(pieces), behind + 4 * len(pieces) if len(pieces) > 1 else lengths[0])]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    tables = np.array([offsets, lengths], "<u4").tobytes() if len(pieces) > 1 else b""
    return b"".join([b"II*\0", struct.pack("<IH", 8, len(entries)), directory, bytes(4), tables, *pieces])


def _open(data: bytes, name: str) -> TiffImageFile:
    try:
        image = TiffImageFile(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise _damaged(f"its {name} strips or tiles do not decode: {error}") from error
    return image


def _jpeg_piece(piece: bytes, layout: _Layout, rows: int) -> NDArray[np.uint8]:
    # Strips carry no marker that says whether their three components are RGB: the tag does.
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([layout.photometric == _YCBCR])
    tables = bytes(layout.tags.get(_JPEG_TABLES, b"\xff\xd8\xff\xd9"))
    stream = b"\xff\xd8" + adobe + tables[2:-2] + piece[2:]
    if not piece.startswith(b"\xff\xd8") or jpeg_size(stream) not in (
        (rows, layout.tile_width),
        (layout.tile_height, layout.tile_width),
    ):
        raise _damaged("the JPEG stream of a strip or tile has another size than the strip or tile")
    pixels = read_jpeg(stream)
    samples = pixels if pixels.ndim == 3 else pixels[..., None]
    if samples.shape[2] != layout.samples_of_a_plane:
        raise _damaged(f"the JPEG stream of a strip or tile has {samples.shape[2]} components")
    return samples


def _samples(raw: bytes, layout: _Layout, rows: int) -> Samples:
    shape = (rows, layout.tile_width, layout.samples_of_a_plane)
    values: Samples
    if layout.bits == 8:
        values = np.frombuffer(raw, np.uint8).reshape(shape)
    elif layout.bits == 16:
        values = np.frombuffer(raw, f"{layout.order}u2").astype(np.uint16, copy=False).reshape(shape)
    else:
        values = _packed(np.frombuffer(raw, np.uint8).reshape(rows, -1), layout.bits, shape)
    if layout.tag(_PREDICTOR, 1) == 2 and layout.compression not in (_NONE, _PACKBITS):
        return np.cumsum(values, axis=1, dtype=values.dtype)  # wraps around, as it was made
    return values


def _packed(raw: NDArray[np.uint8], bits: int, shape: tuple[int, int, int]) -> Samples:
    """Unpack samples of 1, 2, 4, 10, 12 or 14 bits, row by row: each row begins with a new byte."""
    values: Samples = np.empty(shape, np.uint8 if bits < 8 else np.uint16)
    weights = (1 << np.arange(bits)[::-1]).astype(values.dtype)
    for index, row in enumerate(raw):
        ones = np.unpackbits(row)[: shape[1] * shape[2] * bits].reshape(-1, bits)
        values[index] = (ones.astype(values.dtype) @ weights).reshape(shape[1:])
    return values


# --- colors


def _in_color(samples: Samples, layout: _Layout, white_level: int) -> tuple[Samples, int]:
    if layout.photometric == _PALETTE:
        return _from_palette(samples[..., 0], layout), 255
    if layout.photometric == _CMYK:
        light = 255 - samples[..., :4].astype(np.uint16)
        return (light[..., 3:] * light[..., :3] // 255).astype(np.uint8), 255
    top = (1 << layout.bits) - 1
    white = min(white_level, top) if layout.bits > 8 else 255
    gray = layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    pixels: Samples = samples[..., 0] if gray else samples[..., :3]
    if layout.bits < 8:
        pixels = (pixels * np.uint8(255 // top)).astype(np.uint8)
    if layout.photometric == _WHITE_IS_ZERO:
        pixels = (white - np.minimum(pixels, white)).astype(samples.dtype)
    return np.ascontiguousarray(pixels), white


def _from_palette(indices: Samples, layout: _Layout) -> NDArray[np.uint8]:
    colors = np.array(layout.tags.get(_COLORMAP, ()), np.int64)
    if colors.size != 3 << layout.bits:
        raise _damaged(f"its palette has {colors.size} numbers where its bits ask for {3 << layout.bits}")
    if colors.max() > 255:  # 16 bits, as the format asks for; some files hold 8
        colors >>= 8
    return np.asarray(colors.astype(np.uint8).reshape(3, -1).T[indices])
