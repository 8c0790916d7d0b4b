"""What the camera did, whatever the part: numbers that move when a lamp dims, a lens gets dirty or a gain goes up."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.records import PictureSignal

_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float64)
"""Difference of two Laplacians: blind to planes and edges, so that mostly noise is left."""

LEAST_SIDE = 3
"""Rows and columns from which a picture has a Laplacian."""

_MOST_PIXELS = 1 << 18
"""Of a larger picture as many rows are looked at, in bands spread over it: the line must not wait for statistics."""

_BAND_ROWS = 64


def picture_statistics(picture: NDArray[np.uint8]) -> PictureSignal:
    """Measure a picture's exposure, sharpness and noise.

    Args:
        picture: uint8 (H, W) or RGB (H, W, 3), at least 3 by 3.

    Source: Pech-Pacheco et al. (2000) for sharpness; Immerkaer, "Fast Noise Variance Estimation" (1996), for noise.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or min(picture.shape[:2]) < LEAST_SIDE:
        raise ValueError(f"found {picture.dtype} {picture.shape}; expected uint8 (H, W) or (H, W, 3), at least 3 by 3")
    greys, laplacians, residues = [], [], []
    for band in _bands(picture):
        grey = cv2.cvtColor(band, cv2.COLOR_RGB2GRAY) if band.ndim == 3 else band
        inner = (slice(1, -1), slice(1, -1))  # beyond the border there is no picture, only padding
        greys.append(grey.ravel())
        laplacians.append(cv2.Laplacian(grey, cv2.CV_32F)[inner].ravel())
        residues.append(np.abs(cv2.filter2D(grey, cv2.CV_32F, _NOISE_MASK)[inner]).ravel())
    grey, laplacian, residue = (np.concatenate(parts) for parts in (greys, laplacians, residues))
    counts = np.bincount(grey, minlength=256)  # moments of 256 levels are exact and take no second look at the pixels
    share, levels = counts / counts.sum(), np.arange(256.0)
    mean = float(share @ levels)
    return PictureSignal(
        mean,
        math.sqrt(float(share @ (levels - mean) ** 2)),
        float(share[0] + share[255]),
        float(laplacian.var(dtype=np.float64)),
        # Weights of the mask have length 6; the mean magnitude of a normal value is sqrt(2 / pi) sigmas.
        math.sqrt(math.pi / 2) / 6 * float(residue.mean(dtype=np.float64)),
    )


def _bands(picture: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The picture, or of a large one bands of rows at even distances."""
    rows, columns = picture.shape[:2]
    wanted = max(1, _MOST_PIXELS // (columns * _BAND_ROWS))
    if rows * columns <= _MOST_PIXELS or wanted * _BAND_ROWS >= rows:
        yield picture
        return
    for place in range(wanted):
        start = (rows - _BAND_ROWS) * place // max(1, wanted - 1)
        yield picture[start : start + _BAND_ROWS]
