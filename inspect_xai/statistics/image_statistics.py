"""Image statistics: numbers that change when a lamp dims, a lens gets dirty or a gain goes up."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.records import ImageStatistics

_NOISE_TAPS = np.array([1.0, -2.0, 1.0])
"""Along rows and columns: the difference of two Laplacians, 0 on planes and edges, so that mostly noise is left."""

_POWERS = np.arange(256.0) ** np.arange(3)[:, np.newaxis]
"""Of every gray value: (3, 256)."""

LEAST_SIDE = 3
"""Rows and columns from which a picture has a Laplacian."""

_MOST_PIXELS = 1 << 18
"""Of a larger picture this many are used, in bands of rows spread over it, so that statistics take little time."""

_BAND_ROWS = 64


def picture_statistics(picture: NDArray[np.uint8]) -> ImageStatistics:
    """Measure a picture's exposure, sharpness and noise.

    Args:
        picture: uint8 (H, W) or RGB (H, W, 3), at least 3 by 3.

    Source: Pech-Pacheco et al. (2000) for sharpness; Immerkaer, "Fast Noise Variance Estimation" (1996), for noise.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or min(picture.shape[:2]) < LEAST_SIDE:
        raise ValueError(f"found {picture.dtype} {picture.shape}; expected uint8 (H, W) or (H, W, 3), at least 3 by 3")
    counts, pixels, bends, squared_bends, residues = np.zeros(256), 0, 0.0, 0.0, 0.0
    for band in _bands(picture):
        gray = cv2.cvtColor(band, cv2.COLOR_RGB2GRAY) if band.ndim == 3 else band
        counts += np.ravel(cv2.calcHist([gray], [0], None, [256], [0, 256]))
        inner = (slice(1, -1), slice(1, -1))  # beyond the border there is no picture, only padding
        laplacian = cv2.Laplacian(gray, cv2.CV_16S)[inner]  # both filters of 8 bits are exact in 16
        pixels += laplacian.size
        bends += cv2.sumElems(laplacian)[0]
        squared_bends += cv2.norm(laplacian, cv2.NORM_L2SQR)
        residues += cv2.norm(cv2.sepFilter2D(gray, cv2.CV_16S, _NOISE_TAPS, _NOISE_TAPS)[inner], cv2.NORM_L1)
    seen, grey_values, squares = (int(total) for total in _POWERS @ counts)  # whole numbers differ exactly
    return ImageStatistics(
        grey_values / seen,
        math.sqrt(seen * squares - grey_values**2) / seen,
        float(counts[0] + counts[255]) / seen,
        squared_bends / pixels - (bends / pixels) ** 2,
        # Weights of the mask have length 6; the mean magnitude of a normal value is sqrt(2 / pi) sigmas.
        math.sqrt(math.pi / 2) / 6 * residues / pixels,
    )


def _bands(picture: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the picture, or of a large one bands of rows at even distances."""
    rows, columns = picture.shape[:2]
    wanted = max(1, _MOST_PIXELS // (columns * _BAND_ROWS))
    if rows * columns <= _MOST_PIXELS or wanted * _BAND_ROWS >= rows:
        yield picture
        return
    for place in range(wanted):
        start = (rows - _BAND_ROWS) * place // max(1, wanted - 1)
        yield picture[start : start + _BAND_ROWS]
