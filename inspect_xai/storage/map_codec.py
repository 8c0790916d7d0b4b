"""Maps as compact bytes that carry their own shape and type, named by their sha256.

A blob is a short header and one zstd frame. Values are kept as they are (`Precision.EXACT`) or put on even steps from
the map's smallest to its largest value, which is off by at most half a step:

    STEPS16    65,536 steps    7.6e-6 of the map's range
    STEPS13     8,192 steps    6.1e-5    block sums of records made before they were put on 4,096
    STEPS12     4,096 steps    1.2e-4    fused maps and block sums: a block map rebuilt from them is off by at most 4e-4

The smallest value itself, which is 0 for a fused map, survives bit for bit, and so does a map of one value. float16 is
no better above a quarter of the range. The low bits of real sums are noise that nothing packs: on 8,192 steps some
explanations of 224 x 224 with five blocks took more than 40 kB (docs/reference/record.md has the sizes). What is
packed is the values, their differences along a row, or the differences of those down the column, whichever comes out
smallest, byte plane by byte plane.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from inspect_xai import sparse
from inspect_xai.errors import StoreError

CODEC: Final = "ixm1"
_MAGIC: Final = b"IXM1"
_LEVEL: Final = 12  # 19 takes twenty times as long for 4 % less
_TRIAL: Final = 1  # shows which form packs best: trying all three at 12 took twice as long for 0.04 % less
_CHUNK_VALUES = 1 << 18  # of a large map: what is worked on in float64 at a time
_TYPES: Final = {"float32": "<f4", "float16": "<f2", "uint16": "<u2"}
_HEAD: Final = struct.Struct("<4sBBBB")  # magic, type, precision, filter, number of axes
_LARGEST: Final = float(np.finfo(np.float32).max)
_RANGE: Final = struct.Struct("<dd")  # smallest value, step
_MOST_BYTES: Final = 1 << 31  # a header that claims more is a broken one


class Precision(StrEnum):
    """The precision of a stored map."""

    EXACT = "exact"
    STEPS16 = "steps16"
    STEPS13 = "steps13"
    STEPS12 = "steps12"

    @property
    def intervals(self) -> int:
        """Steps between the smallest and the largest value; 0: the values are kept as they are."""
        return 0 if self is Precision.EXACT else (1 << int(self.removeprefix("steps"))) - 1


@dataclass(frozen=True, slots=True)
class Blob:
    """One encoded map; `data` alone is enough to decode it, the rest says what is inside without opening it."""

    codec: str
    dtype: str
    shape: tuple[int, ...]
    precision: Precision
    sha256: str  # of `data`
    data: bytes


def encode(array: NDArray[Any], *, precision: Precision = Precision.EXACT) -> Blob:
    """Compress a map.

    Args:
        array: Any shape; float32, float16 or uint16. On steps: float32 and finite.
        precision: `EXACT` gives back every bit; on steps it is off by at most half of one.

    Raises:
        StoreError: The type is another one, or a value to be put on steps is not finite.
    """
    dtype = array.dtype.name
    if dtype not in _TYPES:
        raise StoreError(f"a map of type {dtype}", expected=f"one of {', '.join(_TYPES)}")
    values = np.ascontiguousarray(array, dtype=_TYPES[dtype])
    limits = b""
    if precision.intervals:
        smallest, step, values = _on_steps(values, precision.intervals)
        limits = _RANGE.pack(smallest, step)
    whole = values.view(f"<u{values.dtype.itemsize}")
    trial = zstandard.ZstdCompressor(level=_TRIAL)
    # One form at a time: of a large picture each weighs as much as the picture.
    chosen = min(range(1 + min(array.ndim, 2)), key=lambda form: len(trial.compress(_packed(whole, form))))
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(_packed(whole, chosen))
    codes = (list(_TYPES).index(dtype), list(Precision).index(precision), chosen, array.ndim)
    data = _HEAD.pack(_MAGIC, *codes) + struct.pack(f"<{array.ndim}I", *array.shape) + limits + frame
    return Blob(CODEC, dtype, tuple(array.shape), precision, hashlib.sha256(data).hexdigest(), data)


def decode(data: bytes, *, sha256: str = "") -> NDArray[Any]:
    """Decode a map in the shape and type it had.

    Args:
        data: What `encode` made.
        sha256: What it must hash to; empty: not compared.

    Raises:
        StoreError: The bytes are not what was stored.
    """
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"a stored map was changed: its bytes no longer hash to {sha256}")
    try:
        return _decoded(data)
    except (struct.error, zstandard.ZstdError, IndexError, ValueError) as error:
        raise StoreError(f"{len(data)} bytes that hold no map: {error}", expected=f"a blob of codec {CODEC}") from error


def described(data: bytes) -> dict[str, Any]:
    """Read codec, dtype, precision, shape and size in bytes from a blob's own header.

    Raises:
        StoreError: The bytes are no blob.
    """
    try:
        magic, type_code, precision_code, _, axes = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("the header is none of ours")
        return {
            "codec": CODEC,
            "dtype": list(_TYPES)[type_code],
            "precision": list(Precision)[precision_code].value,
            "shape": list(struct.unpack_from(f"<{axes}I", data, _HEAD.size)),
            "size_bytes": len(data),
        }
    except (struct.error, IndexError, ValueError) as error:
        raise StoreError(f"{len(data)} bytes that hold no map: {error}", expected=f"a blob of codec {CODEC}") from error


def _decoded(data: bytes) -> NDArray[Any]:
    magic, type_code, precision_code, filter_code, axes = _HEAD.unpack_from(data)
    if magic != _MAGIC or filter_code > min(axes, 2):
        raise ValueError("the header is none of ours")
    dtype = list(_TYPES.values())[type_code]
    precision = list(Precision)[precision_code]
    shape = struct.unpack_from(f"<{axes}I", data, _HEAD.size)
    offset = _HEAD.size + 4 * axes
    size = 2 if precision.intervals else int(dtype[-1])
    total = size * int(np.prod(shape, dtype=object))  # Python's integers: a false header must not overflow
    smallest = step = 0.0
    if precision.intervals:
        smallest, step = _RANGE.unpack_from(data, offset)
        offset += _RANGE.size
        largest = smallest + precision.intervals * step
        if not (abs(smallest) <= _LARGEST and abs(largest) <= _LARGEST):
            raise ValueError("the header's range is none of finite numbers")
    if total > _MOST_BYTES or zstandard.frame_content_size(data[offset:]) != total:
        raise ValueError("the header and the packed bytes disagree on the size")
    planes = zstandard.ZstdDecompressor().decompress(data[offset:], max_output_size=total)
    whole = np.frombuffer(planes, np.uint8).reshape(size, -1).T.copy().view(f"<u{size}").reshape(shape)
    if filter_code == 2:
        signed = (whole >> 1) ^ (0 - (whole & 1))
        whole = np.cumsum(signed, axis=-2, dtype=whole.dtype)
    if filter_code > 0:
        whole = np.cumsum(whole, axis=-1, dtype=whole.dtype)
    if precision.intervals:
        if whole.size and int(whole.max()) > precision.intervals:
            raise ValueError("the packed numbers exceed the header's number of steps")
        return (smallest + whole * step).astype(np.float32)
    return whole.view(dtype)


def _on_steps(values: NDArray[np.float32], intervals: int) -> tuple[float, float, NDArray[np.uint16]]:
    finite = values.size == 0 or np.isfinite([values.min(), values.max()]).all()  # NaN is both
    if values.dtype != np.dtype("<f4") or not finite:
        raise StoreError("a map that is not finite float32", expected="finite float32, to be put on even steps")
    if values.size == 0:
        return 0.0, 0.0, np.zeros(values.shape, "<u2")
    smallest, largest = float(values.min()), float(values.max())
    step = (largest - smallest) / intervals
    if step == 0.0:
        return smallest, 0.0, np.zeros(values.shape, "<u2")
    steps = sparse.zeros(values.shape, "<u2")
    flat, into = values.reshape(-1), steps.reshape(-1)
    for start in range(0, flat.size, _CHUNK_VALUES):
        part = np.s_[start : start + _CHUNK_VALUES]
        _put(into[part], np.rint((flat[part].astype(np.float64) - smallest) / step))
    return smallest, step, steps


def _put(into: NDArray[Any], values: NDArray[Any]) -> None:
    """Write values over zeros; where they are 0 nothing is written, and memory never written to takes no room."""
    np.copyto(into, values, where=values != 0, casting="unsafe")


def _filtered(whole: NDArray[Any], form: int) -> NDArray[Any]:
    """Return values as they are (0), their differences along rows (1), or the bends of those down columns (2)."""
    if form == 0:
        return whole
    differences = _differences(whole, axis=-1)
    return differences if form == 1 else _bends(differences)


def _differences(whole: NDArray[Any], *, axis: int) -> NDArray[Any]:
    """Every value less the one before it along an axis, wrapping round."""
    differences = whole.copy()
    later, earlier = np.moveaxis(differences, axis, 0)[1:], np.moveaxis(whole, axis, 0)[:-1]
    later -= earlier
    return differences


def _bends(differences: NDArray[Any]) -> NDArray[Any]:
    """Of differences along rows those down columns, folded so that small ones of either sign are small numbers."""
    bends = _differences(differences, axis=-2)
    return (bends << 1) ^ (0 - (bends >> (8 * bends.dtype.itemsize - 1)))


def _packed(whole: NDArray[Any], form: int) -> bytes | memoryview:
    """Return the byte planes of one form; a large map is processed in bands, each with the row above it."""
    if whole.ndim != 2 or whole.size <= _CHUNK_VALUES:
        return _planes(_filtered(whole, form))
    rows, columns = whole.shape
    planes = sparse.zeros((whole.dtype.itemsize, rows, columns), np.uint8)
    band = max(1, _CHUNK_VALUES // columns)
    for top in range(0, rows, band):
        above = min(top, 1)
        part = np.ascontiguousarray(_filtered(whole[top - above : top + band], form)[above:])
        _put(planes[:, top : top + band], np.moveaxis(part.view(np.uint8).reshape(*part.shape, -1), -1, 0))
    return planes.data.cast("B")


def _planes(whole: NDArray[Any]) -> bytes:
    """Group all low bytes, then all next ones, ...: the slow-changing high bytes then pack to almost nothing."""
    return whole.reshape(-1).view(np.uint8).reshape(-1, whole.dtype.itemsize).T.tobytes()
