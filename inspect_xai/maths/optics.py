"""What the camera did, whatever the part: numbers that move when a lamp dims, a lens gets dirty or a gain goes up."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float64)
"""Difference of two Laplacians: blind to planes and edges, so that mostly noise is left."""


@dataclass(frozen=True, slots=True)
class PictureStatistics:
    """Image statistics, all on luma in grey levels 0 to 255.

    Attributes:
        brightness: Mean.
        contrast: Standard deviation.
        clipped: Share of pixels at 0 or 255: under- or overexposed.
        sharpness: Variance of the Laplacian: falls with defocus and dirt, rises with noise and texture.
        noise: Standard deviation of the noise; texture as fine as a pixel is taken for it.
    """

    brightness: float
    contrast: float
    clipped: float
    sharpness: float
    noise: float


def picture_statistics(picture: NDArray[np.uint8]) -> PictureStatistics:
    """Measure a picture's exposure, sharpness and noise.

    Args:
        picture: uint8 (H, W) or RGB (H, W, 3), at least 3 by 3.

    Source: Pech-Pacheco et al. (2000) for sharpness; Immerkaer, "Fast Noise Variance Estimation" (1996), for noise.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or min(picture.shape[:2]) < 3:
        raise ValueError(f"found {picture.dtype} {picture.shape}; expected uint8 (H, W) or (H, W, 3), at least 3 by 3")
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
    inner = (slice(1, -1), slice(1, -1))  # beyond the border there is no picture, only padding
    laplacian = cv2.Laplacian(grey, cv2.CV_64F)[inner]
    residue = cv2.filter2D(grey, cv2.CV_64F, _NOISE_MASK)[inner]
    return PictureStatistics(
        float(grey.mean()),
        float(grey.std()),
        float(np.mean((grey == 0) | (grey == 255))),
        float(laplacian.var()),
        # Weights of the mask have length 6; the mean magnitude of a normal value is sqrt(2 / pi) sigmas.
        float(math.sqrt(math.pi / 2) / 6 * np.abs(residue).mean()),
    )
