"""Similarity of two explanation maps (H, W): order of pixels, structure, and overlap of the top pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from inspect_xai.maths.metrics import KEPT_SHARE, share_of, stretched
from inspect_xai.maths.sise import top_k

_SIGMA = 1.5  # of SSIM's window, as its authors have it
_C1, _C2 = 0.01**2, 0.03**2


def rank_correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the rank correlation of two maps' pixels (Spearman), -1 to 1; 0 where a map is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def ssim(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the structural similarity of two maps, each first stretched to [0, 1]; 1 is the same map.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), equation 13.
    """
    x, y = stretched(one), stretched(other)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    shared = _smooth(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * shared + _C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(values, (11, 11), _SIGMA, borderType=cv2.BORDER_REFLECT), np.float64)


def top_overlap(one: NDArray[np.integer], other: NDArray[np.integer], *, share: float = KEPT_SHARE) -> float:
    """Return which share of the top pixels two rank maps have in common; by chance it is `share`, that of the top."""
    count = share_of(one.size, share)
    return float(np.count_nonzero(top_k(one, count) & top_k(other, count)) / count)
