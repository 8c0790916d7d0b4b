"""Random fields and soft shapes that grounds, nuisances and defects are made of."""

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

# Lines are drawn this many times larger and averaged down, so that one of 1.3 px width looks like one.
_FINER = 4


def grain(rng: np.random.Generator, size: tuple[int, int], sigma_px: float) -> Field:
    """Draw round-grained noise: (H, W), mean 0, standard deviation 1, grains of about `sigma_px`."""
    white = rng.standard_normal(size, dtype=np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    return standardized(np.asarray(noise, dtype=np.float32))


def softened(field: Field, sigma_px: float) -> Field:
    """Blur a shape (H, W) with a Gaussian."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma_px), dtype=np.float32)


def shrunk(canvas: NDArray[np.uint8], size: tuple[int, int]) -> Field:
    """Average a canvas drawn finer down to (H, W): coverage in [0, 1]."""
    return cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def clouds(rng: np.random.Generator, size: tuple[int, int], pitch_px: tuple[float, float]) -> Field:
    """Draw smooth noise (H, W) whose hills are `pitch_px` (rows, columns) apart: mean 0, standard deviation 1.

    It is drawn on a coarse grid and enlarged, which is why a pitch of 200 px costs nothing.
    """
    height, width = size
    rows, columns = (max(4, int(np.ceil(extent / pitch)) + 3) for extent, pitch in zip(size, pitch_px, strict=True))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    drift = rng.random(2, dtype=np.float32)  # a grid that starts anywhere: hills must not sit at fixed pixels
    y = (np.arange(height, dtype=np.float32) + 0.5) / pitch_px[0] + drift[0] + 0.5
    x = (np.arange(width, dtype=np.float32) + 0.5) / pitch_px[1] + drift[1] + 0.5
    grid_x, grid_y = np.meshgrid(x, y)
    hills = cv2.remap(coarse, grid_x, grid_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return standardized(np.asarray(hills, dtype=np.float32))


def standardized(noise: Field) -> Field:
    """Shift and scale an array to mean 0 and standard deviation 1."""
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6), dtype=np.float32)


def slope(height: Field, light: tuple[float, float]) -> Field:
    """Tell how much a relief (H, W) faces a lamp in direction `light` (row, column): positive where it is lit."""
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125, borderType=cv2.BORDER_REFLECT)
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125, borderType=cv2.BORDER_REFLECT)
    return np.asarray(-(light[0] * down + light[1] * across), dtype=np.float32)


def strokes(size: tuple[int, int], paths: list[NDArray[np.float64]], *, widths: list[NDArray[np.float64]]) -> Field:
    """Draw lines of varying width, antialiased.

    Args:
        size: (H, W) of the picture.
        paths: Each float (n, 2), points as (row, column) in pixels.
        widths: Each float (n,), the width in pixels at each point; 0 leaves a gap.

    Returns:
        Coverage (H, W) in [0, 1].
    """
    canvas = np.zeros((size[0] * _FINER, size[1] * _FINER), np.uint8)
    for path, width in zip(paths, widths, strict=True):
        points = np.round((path[:, ::-1] + 0.5) * _FINER * 16).astype(np.int32)
        for start in range(len(points) - 1):
            thickness = round(float(width[start]) * _FINER)
            if thickness >= 1:
                segment = points[start : start + 2].reshape(1, 2, 2)
                cv2.polylines(canvas, [segment], isClosed=False, color=255, thickness=thickness, shift=4)
    return shrunk(canvas, size)


def moved(field: Field, by: tuple[float, float]) -> Field:
    """Shift an array (H, W) by (rows, columns), parts of a pixel included; zeros come in from the edge."""
    matrix = np.array([[1.0, 0.0, by[1]], [0.0, 1.0, by[0]]])
    shifted = cv2.warpAffine(field, matrix, (field.shape[1], field.shape[0]), flags=cv2.INTER_LINEAR)
    return np.asarray(shifted, dtype=np.float32)


def distance(size: tuple[int, int], center: tuple[float, float]) -> tuple[Field, Field]:
    """Give each pixel's distance (H, W) in px and angle (H, W) in radians about `center` (row, column)."""
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(center[0])
    x = np.arange(size[1], dtype=np.float32)[None, :] - np.float32(center[1])
    return np.hypot(y, x), np.arctan2(y, x)


def step(values: Field, low: float, high: float) -> Field:
    """Ease from 0 at `low` to 1 at `high`, elementwise; `low` may be the larger one."""
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share), dtype=np.float32)
