"""Windows of a picture of any size for the network, and their maps back on the picture.

A window may reach past the picture; outside is the picture mirrored (tiles) or the card's color (letterbox). Row before
column everywhere; starts and sizes in source pixels.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai import sparse
from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.maths import resizing
from inspect_xai.maths.resizing import Pixels
from inspect_xai.maths.sise import upsample, upsample_into
from inspect_xai.records import Channels, Fit, InputSpec, Resize, Tile

_MOST_RESIZED_PX = 1 << 26

_BAND_PIXELS = 1 << 21  # averaged at a time; a larger window is laid onto the picture block by block
_BLENDED_PIXELS = 1 << 18  # whose sums and weights are held at a time

# A letterbox is made whole up to this many times the picture, and always up to this many pixels.
_MOST_PADDED_SHARE, _MOST_PADDED_PX = 4, 1 << 24


def as_channels(picture: NDArray[np.uint8], channels: Channels) -> NDArray[np.uint8]:
    """Give a picture the color channels the network takes, in its order.

    Args:
        picture: (H, W) gray or (H, W, 3) RGB.
        channels: GRAY from RGB is 0.299 R + 0.587 G + 0.114 B; color from gray repeats it.

    Returns:
        (H, W, 1) or (H, W, 3); of a gray picture the color channels are views of the same plane.

    Raises:
        PictureError: It is no such picture, or it is empty.
    """
    is_gray = picture.ndim == 2
    if picture.dtype != np.uint8 or picture.size == 0 or not (is_gray or picture.shape[2:] == (3,)):
        raise PictureError(
            f"the picture is {picture.dtype} of shape {picture.shape}",
            expected="uint8 of shape (rows, columns) or (rows, columns, 3) in RGB",
        )
    if channels is Channels.GRAY:
        gray = picture if is_gray else np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        return gray[..., np.newaxis]
    if is_gray:
        return np.broadcast_to(picture[..., np.newaxis], (*picture.shape, 3))
    return np.ascontiguousarray(picture[..., ::-1] if channels is Channels.BGR else picture)


def windows(size: tuple[int, int], spec: InputSpec) -> tuple[Tile, ...]:
    """Lay the network's windows over a picture, in reading order.

    TILE: at native scale, evenly spread, neighbors overlapping by at least the card's share; along an axis where the
    picture is shorter than the window, one window reaches past both edges alike.
    STRETCH: the picture itself. LETTERBOX: the smallest window of the network's proportions around the picture.
    CENTER_CROP: the largest one in its middle, or what is left of it when `resize_short` leaves more around the window.

    Args:
        size: (H, W) of the picture.
        spec: What the network takes.

    Raises:
        PictureError: The picture has no pixels, or resized by its shorter side it would have too many.
        SettingsError: The card's overlap is outside [0, 1).
    """
    if min(size) < 1:
        raise PictureError(f"the picture has {size[0]} rows and {size[1]} columns", expected="at least one of each")
    if not 0 <= spec.tile_overlap < 1:
        raise SettingsError(
            f"input.tile_overlap is {spec.tile_overlap}",
            expected="a number from 0 up to, but not, 1",
            remedy="set 0.25 in the card",
        )
    match spec.fit:
        case Fit.STRETCH:
            return (Tile(0, 0, 0, *size),)
        case Fit.CENTER_CROP:
            return (_cropped(size, spec),)
        case Fit.LETTERBOX if spec.resize is not Resize.AREA:
            return (_padded(size, spec),)
        case Fit.LETTERBOX:
            shrink = max(size[0] / spec.height, size[1] / spec.width)
            height, width = max(size[0], round(spec.height * shrink)), max(size[1], round(spec.width * shrink))
            return (Tile(0, -((height - size[0]) // 2), -((width - size[1]) // 2), height, width),)
        case Fit.TILE:
            tops = _starts(size[0], spec.height, spec.tile_overlap)
            lefts = _starts(size[1], spec.width, spec.tile_overlap)
            corners = [(top, left) for top in tops for left in lefts]
            return tuple(Tile(i, *corner, spec.height, spec.width) for i, corner in enumerate(corners))


def _cropped(size: tuple[int, int], spec: InputSpec) -> Tile:
    """Return the window of CENTER_CROP, rounded to pixels of the picture."""
    if not spec.resize_short:
        # As Keras' crop_to_aspect_ratio computes it.
        height = min(size[0], int(size[1] * spec.height / spec.width))
        width = min(size[1], int(size[0] * spec.width / spec.height))
        height, width = max(1, height), max(1, width)
        return Tile(0, int((size[0] - height) / 2), int((size[1] - width) / 2), height, width)
    whole = resizing.short_side(size, spec.resize_short, spec.resize)
    if whole[0] * whole[1] > _MOST_RESIZED_PX:
        raise PictureError(
            f"the picture of {size[0]} x {size[1]} pixels, its shorter side resized to {spec.resize_short}, has "
            f"{whole[0] * whole[1]} of them",
            expected=f"up to {_MOST_RESIZED_PX}",
        )
    places = []
    for given, resized, wanted in zip(size, whole, (spec.height, spec.width), strict=True):
        first = resizing.middle(resized, wanted, spec.resize)
        start = min(given - 1, round(first * given / resized))
        places.append((start, max(1, min(given, round((first + wanted) * given / resized)) - start)))
    (top, height), (left, width) = places
    return Tile(0, top, left, height, width)


def _inside(size: tuple[int, int], spec: InputSpec) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in the network's window, of a picture that is resized and then padded."""
    share = min(spec.height / size[0], spec.width / size[1])
    height, width = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    return (spec.height - height) // 2, (spec.width - width) // 2, height, width


def _padded(size: tuple[int, int], spec: InputSpec) -> Tile:
    """Return the window around a picture that is padded after resizing, rounded to pixels of the picture."""
    top, left, height, width = _inside(size, spec)
    first_row, first_column = -round(top * size[0] / height), -round(left * size[1] / width)
    last_row = max(size[0], round((spec.height - top) * size[0] / height))
    last_column = max(size[1], round((spec.width - left) * size[1] / width))
    return Tile(0, first_row, first_column, last_row - first_row, last_column - first_column)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis, evenly spread with at least the overlap between neighbors."""
    spare = length - window
    if spare <= 0:
        return [-(-spare // 2)]
    step = max(1, int(window * (1 - overlap) + 1e-9))  # 10 * (1 - 0.9) is 0.9999999999999998
    gaps = -(-spare // step)
    return [i * spare // gaps for i in range(gaps + 1)]


def cut(picture: NDArray[np.uint8], tile: Tile, spec: InputSpec) -> NDArray[np.float32]:
    """Cut one window out of a picture, as `cut_pixels` does, in float32."""
    return cut_pixels(picture, tile, spec).astype(np.float32)


def cut_pixels(picture: NDArray[np.uint8], tile: Tile, spec: InputSpec) -> Pixels:
    """Cut one window out of a picture, as the network takes it but before scale, mean and std.

    A window of another size than the network's input is resized as the card says. AREA: bilinearly, and along an axis
    that shrinks by averaging areas, so that a scratch one pixel wide grows faint but does not vanish between samples.
    By any other the picture is resized first and padded afterwards, as the frameworks do it.

    Args:
        picture: (H, W, C) in the network's channel order, from `as_channels`.
        tile: The window. What lies outside the picture is mirrored at its edge pixel (numpy's "reflect"), as often as
            it takes; for LETTERBOX it is `pad_color` or the card's mean color, which the network's input calls 0.
        spec: What the network takes.

    Returns:
        (height, width, C) of the network, uint8; float32 where the framework named does not round. A view of the
        picture where nothing had to be done.
    """
    if spec.fit is Fit.CENTER_CROP and spec.resize_short:
        return _cut_after_resizing(picture, spec)
    if spec.fit is Fit.LETTERBOX and spec.resize is not Resize.AREA:
        return _padded_after_resizing(picture, spec)
    if spec.fit is Fit.LETTERBOX:
        if _is_mostly_padding(picture, tile, spec):
            return _averaged_and_padded(picture, tile, (spec.height, spec.width), _pad_color(spec))
        window = np.empty((tile.height_px, tile.width_px, picture.shape[2]), dtype=np.uint8)
        window[:] = _pad_color(spec)
        window[-tile.top_px :, -tile.left_px :][: picture.shape[0], : picture.shape[1]] = picture
    else:
        window = _within(picture, tile)
    return _resized(window, (spec.height, spec.width), spec.resize)


def _pad_color(spec: InputSpec) -> NDArray[np.uint8]:
    color = spec.pad_color or np.asarray(spec.mean) * spec.scale
    return np.clip(np.rint(color), 0, 255).astype(np.uint8)


def _is_mostly_padding(picture: NDArray[np.uint8], tile: Tile, spec: InputSpec) -> bool:
    """Whether a letterbox that shrinks is so much larger than its picture that it is not made before it is shrunk."""
    most = max(_MOST_PADDED_PX, _MOST_PADDED_SHARE * picture.shape[0] * picture.shape[1])
    return tile.height_px * tile.width_px > most and tile.height_px >= spec.height and tile.width_px >= spec.width


def _averaged_and_padded(
    picture: NDArray[np.uint8], tile: Tile, size: tuple[int, int], color: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Average areas of a long picture's letterbox without making it whole.

    Args:
        picture: (H, W, C).
        tile: The window, around all of the picture.
        size: (h, w) wanted, no larger than the window.
        color: (C,) of what lies around the picture.

    Returns:
        (h, w, C); as of the whole window but for rounding, by one level at most.
    """
    if picture.shape[0] < picture.shape[1]:
        turned = Tile(tile.index, tile.left_px, tile.top_px, tile.width_px, tile.height_px)
        return _averaged_and_padded(picture.swapaxes(0, 1), turned, size[::-1], color).swapaxes(0, 1)
    rows, columns, channels = picture.shape
    added = np.zeros((size[0], columns * channels))
    band = max(1, _BAND_PIXELS // max(columns * channels, size[0]))
    for top in range(0, rows, band):
        pixels = picture[top : top + band].astype(np.float64) - color
        first, shares = _area_shares(top - tile.top_px, len(pixels), tile.height_px, size[0])
        added[first : first + len(shares)] += shares @ pixels.reshape(len(pixels), -1)
    first, shares = _area_shares(-tile.left_px, columns, tile.width_px, size[1])
    window = np.empty((*size, channels))
    window[:] = color
    window[:, first : first + len(shares)] += np.einsum(
        "ck,rkn->rcn", shares, added.reshape(size[0], columns, channels)
    )
    return np.clip(np.rint(window), 0, 255).astype(np.uint8)


def _area_shares(start: int, count: int, given: int, wanted: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first cell that `count` pixels from `start` on overlap, along one axis, and shares (cells, count).

    The axis has `given` pixels and `wanted` cells.
    """
    step = given / wanted
    first, last = int(start / step), min(wanted, math.ceil((start + count) / step))
    cells, pixels = np.arange(first, last)[:, np.newaxis] * step, start + np.arange(count)
    overlap = np.minimum(cells + step, pixels + 1) - np.maximum(cells, pixels)
    return first, np.maximum(overlap, 0) / step


def _cut_after_resizing(picture: NDArray[np.uint8], spec: InputSpec) -> Pixels:
    """Resize the shorter side to `resize_short` and cut out the middle."""
    size = picture.shape[0], picture.shape[1]
    whole = _resized(picture, resizing.short_side(size, spec.resize_short, spec.resize), spec.resize)
    top = resizing.middle(whole.shape[0], spec.height, spec.resize)
    left = resizing.middle(whole.shape[1], spec.width, spec.resize)
    return whole[top : top + spec.height, left : left + spec.width]


def _padded_after_resizing(picture: NDArray[np.uint8], spec: InputSpec) -> Pixels:
    """Resize a picture so that it just fits, and pad it evenly on both sides, an odd pixel at the end."""
    top, left, height, width = _inside((picture.shape[0], picture.shape[1]), spec)
    inside = _resized(picture, (height, width), spec.resize)
    window = np.empty((spec.height, spec.width, picture.shape[2]), inside.dtype)
    window[:] = _pad_color(spec)
    window[top : top + height, left : left + width] = inside
    return window


def _within(picture: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """Take a window's pixels; a view where it lies inside the picture."""
    rows, columns = picture.shape[:2]
    bottom, right = tile.top_px + tile.height_px, tile.left_px + tile.width_px
    inside = picture[max(0, tile.top_px) : bottom, max(0, tile.left_px) : right]
    missing = max(0, -tile.top_px), max(0, bottom - rows), max(0, -tile.left_px), max(0, right - columns)
    if not any(missing):
        return inside
    mirrored = cv2.copyMakeBorder(inside, *missing, cv2.BORDER_REFLECT_101)
    return np.asarray(mirrored, dtype=np.uint8).reshape(tile.height_px, tile.width_px, picture.shape[2])


def _resized(window: NDArray[np.uint8], size: tuple[int, int], how: Resize) -> Pixels:
    return _averaged(window, size) if how is Resize.AREA else resizing.resized(window, size, how)


def _averaged(window: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    # cv2 averages areas only when both axes shrink, hence two steps: the one that shrinks first.
    shrunk = min(window.shape[0], size[0]), min(window.shape[1], size[1])
    resized: NDArray[np.uint8] = window
    for target, how in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if resized.shape[:2] != target:
            smaller_or_larger = cv2.resize(resized, (target[1], target[0]), interpolation=how)
            resized = np.asarray(smaller_or_larger, dtype=np.uint8).reshape(*target, window.shape[2])
    return resized


def in_window(values: NDArray[np.generic], tile: Tile, spec: InputSpec, *, outside: float) -> NDArray[np.generic]:
    """Cut a window out of values (H, W) of the picture's pixels, as `cut` does with the picture.

    Returns (h, w) of the network's window, the nearest pixel's value where sizes differ, and `outside` beyond the
    picture where the card pads with a color.
    """
    rows, columns = (
        start + ((np.arange(out) + 0.5) * given / out).astype(np.intp)
        for start, given, out in ((tile.top_px, tile.height_px, spec.height), (tile.left_px, tile.width_px, spec.width))
    )
    height, width = values.shape
    if spec.fit is not Fit.LETTERBOX:
        return np.asarray(values[np.ix_(_mirrored(rows, height), _mirrored(columns, width))])
    window = np.full((spec.height, spec.width), outside, values.dtype)
    down, across = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    window[np.ix_(down, across)] = values[np.ix_(rows[down], columns[across])]
    return window


def _mirrored(places: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return places along an axis mirrored at its first and last pixel, repeatedly (numpy's "reflect")."""
    period = max(1, 2 * (length - 1))
    within = places % period
    return np.minimum(within, period - within) if length > 1 else np.zeros_like(places)


def stitch(maps: Sequence[NDArray[np.float32]], tiles: Sequence[Tile], size: tuple[int, int]) -> NDArray[np.float32]:
    """Join the maps of windows on the picture they were cut from.

    Where windows overlap, each is weighted by the distance to its nearest edge, which blends one map into the next
    linearly.

    Args:
        maps: (h, w) each, at the network's size; resized bilinearly to their window.
        tiles: Their windows, in the same order.
        size: (H, W) of the picture.

    Returns:
        (H, W); 0 where no given window lies, as around a center crop. A pixel that only one window covers has that
        window's value, unchanged.
    """
    on_whole: NDArray[np.float32] = sparse.zeros(size, np.float32)
    if not tiles:
        return on_whole
    if len(tiles) == 1:  # all of it is that window's
        _lay_alone(maps[0], tiles[0], on_whole)
        return on_whole
    # Sums in float64 only where windows lie, and of some rows at a time, to save memory.
    first_column = max(0, min(tile.left_px for tile in tiles))
    last_column = min(size[1], max(tile.left_px + tile.width_px for tile in tiles))
    width = last_column - first_column
    rows = max(1, _BLENDED_PIXELS // width)
    for top in range(0, size[0], rows):
        bottom = min(top + rows, size[0])
        here = [
            (tile_map, tile)
            for tile_map, tile in zip(maps, tiles, strict=True)
            if tile.top_px < bottom and tile.top_px + tile.height_px > top
        ]
        if here:
            _lay_band(on_whole[top:bottom, first_column:last_column], here, top, first_column)
    return on_whole


def overlaps(tile: Tile, size: tuple[int, int]) -> bool:
    """Tell whether a window has pixels in common with a picture of (H, W)."""
    return -tile.height_px < tile.top_px < size[0] and -tile.width_px < tile.left_px < size[1]


def _lay_alone(tile_map: NDArray[np.float32], tile: Tile, on_whole: NDArray[np.float32]) -> None:
    """Write a window's map onto the picture (H, W); a large one is never made whole, as most may lie outside."""
    (rows, columns), in_window = _overlap(tile, (on_whole.shape[0], on_whole.shape[1]))
    size = tile.height_px, tile.width_px
    if tile_map.shape == size or size[0] * size[1] <= _BAND_PIXELS:
        on_whole[rows, columns] = _at_size(tile_map, tile)[in_window]
    else:
        upsample_into(on_whole[rows, columns], tile_map, size, first=(in_window[0].start, in_window[1].start))


def _lay_band(
    band: NDArray[np.float32], placed: Sequence[tuple[NDArray[np.float32], Tile]], top_px: int, left_px: int
) -> None:
    """Blend windows on one rectangle of the picture, in their order.

    Pixels without a window are not written, so that their memory pages are never allocated.
    """
    size = band.shape[0], band.shape[1]
    total, weight = np.zeros(size), np.zeros(size)
    for tile_map, tile in placed:
        moved = Tile(tile.index, tile.top_px - top_px, tile.left_px - left_px, tile.height_px, tile.width_px)
        on_band, in_window = _overlap(moved, size)
        # Whole numbers: a float32 times such a weight is exact in float64, so one map alone comes back bit for bit.
        ramp = np.outer(_ramp(tile.height_px)[in_window[0]], _ramp(tile.width_px)[in_window[1]])
        total[on_band] += _at_size(tile_map, tile)[in_window] * ramp
        weight[on_band] += ramp
    covered = weight > 0
    np.divide(total, weight, out=total, where=covered)
    np.copyto(band, total, where=covered, casting="same_kind")


def _overlap(tile: Tile, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the pixels that a window and a rectangle of (H, W) have in common, as places in each."""
    top, left = max(0, tile.top_px), max(0, tile.left_px)
    bottom, right = min(size[0], tile.top_px + tile.height_px), min(size[1], tile.left_px + tile.width_px)
    inside = slice(top - tile.top_px, bottom - tile.top_px), slice(left - tile.left_px, right - tile.left_px)
    return (slice(top, bottom), slice(left, right)), inside


def _at_size(tile_map: NDArray[np.float32], tile: Tile) -> NDArray[np.float32]:
    size = tile.height_px, tile.width_px
    return tile_map if tile_map.shape == size else upsample(tile_map, size)


def _ramp(length: int) -> NDArray[np.float64]:
    """Return 1, 2, 3 .. 3, 2, 1."""
    places = np.arange(length, dtype=np.float64)
    return np.minimum(places + 1, length - places)
