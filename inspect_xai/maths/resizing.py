"""Resizing exactly as the framework in which a network was trained: scores may depend on it.

docs/reference/card.md names the framework's function of each `resize` of a card; tests compare with its results. AREA
is this project's own, in tiles.py.
"""

from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inspect_xai.records import Resize

Pixels = NDArray[np.uint8] | NDArray[np.float32]

_PILLOW: Final = {
    Resize.NEAREST: Image.Resampling.NEAREST,
    Resize.BILINEAR: Image.Resampling.BILINEAR,
    Resize.BICUBIC: Image.Resampling.BICUBIC,
    Resize.LANCZOS: Image.Resampling.LANCZOS,
}
_TENSOR: Final = {Resize.TENSOR_BILINEAR: Image.Resampling.BILINEAR, Resize.TENSOR_BICUBIC: Image.Resampling.BICUBIC}
_OPENCV: Final = {Resize.OPENCV_LINEAR: cv2.INTER_LINEAR, Resize.OPENCV_CUBIC: cv2.INTER_CUBIC}


def resized(window: NDArray[np.uint8], size: tuple[int, int], how: Resize) -> Pixels:
    """Resize pixels by a framework's arithmetic.

    Args:
        window: (H, W, C).
        size: (h, w) wanted.
        how: Any but AREA.

    Returns:
        (h, w, C), uint8; float32 of the same 0 to 255 where the framework does not round. The picture itself where it
        has that size.
    """
    if window.shape[:2] == size:
        return window
    if how in _OPENCV:
        return _by_plane(window, lambda pixels: cv2.resize(pixels, (size[1], size[0]), interpolation=_OPENCV[how]))
    if how in _TENSOR:
        return _by_plane(window.astype(np.float32), lambda plane: _pillow(plane, size, _TENSOR[how]))
    if how is Resize.TF_BILINEAR:
        return _tf_bilinear(window, size)
    return _by_plane(window, lambda plane: _pillow(plane, size, _PILLOW[how]))


def short_side(size: tuple[int, int], wanted: int, how: Resize) -> tuple[int, int]:
    """Return the (h, w) of a picture whose shorter side is resized to `wanted` pixels.

    The longer side is rounded down as torchvision does; by OpenCV's arithmetic to the nearest, as PaddleClas does.
    """
    height, width = size
    if how in _OPENCV:
        share = wanted / min(size)
        return round(height * share), round(width * share)
    return (wanted, int(wanted * width / height)) if height <= width else (int(wanted * height / width), wanted)


def middle(length: int, wanted: int, how: Resize) -> int:
    """Return where the middle `wanted` of `length` pixels begins, rounded as torchvision, by OpenCV as PaddleClas."""
    return (length - wanted) // 2 if how in _OPENCV else round((length - wanted) / 2)


def _by_plane(window: Pixels, resize: Callable[[NDArray[Any]], NDArray[Any]]) -> Pixels:
    """Resize channel by channel; Pillow knows no pictures of three floats."""
    return np.stack([resize(np.ascontiguousarray(window[..., channel])) for channel in range(window.shape[2])], axis=-1)


def _pillow(plane: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[Any]:
    """Resize (H, W), uint8 or float32; Pillow averages over all pixels that fall on one wherever an axis shrinks.

    Rows first, as Pillow did until version 13, which takes either axis first: levels are rounded in between, so the
    order changes them (by up to 8), and a network's scores must not change with a library's version.
    """
    rows = Image.fromarray(plane).resize((size[1], plane.shape[0]), how)
    return np.asarray(rows.resize((size[1], size[0]), how))


def _tf_bilinear(window: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize as tf.image.resize: between four neighbors at half-pixel centers, without antialiasing."""
    (top, bottom, down), (left, right, across) = (
        _neighbors(given, wanted) for given, wanted in zip(window.shape[:2], size, strict=True)
    )
    upper, lower = (window[rows].astype(np.float32) for rows in (top, bottom))
    across = across[:, np.newaxis]
    above = upper[:, left] + (upper[:, right] - upper[:, left]) * across
    below = lower[:, left] + (lower[:, right] - lower[:, left]) * across
    return np.asarray(above + (below - above) * down[:, np.newaxis, np.newaxis], np.float32)


def _neighbors(given: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return, along one axis, the sample before and after each place, and the place's share of the way between."""
    share = np.float32(given) / np.float32(wanted)
    place = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * share - np.float32(0.5)
    before = np.floor(place)
    first, last = np.maximum(before, 0), np.minimum(np.ceil(place), given - 1)
    return first.astype(np.intp), last.astype(np.intp), place - before
