"""Explanation map -> the few places it marks, as boxes that can be stored, searched and drawn."""

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths.sise import otsu
from inspect_xai.records import Region


def marked_pixels(fused: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell the pixels that stand out from the rest of the evidence.

    Most of an explanation map is 0 by design, so the threshold is Otsu's over the values above 0, as shares of the
    largest. Where they are all alike, all of them are marked.

    Args:
        fused: (H, W), 0 or more.

    Returns:
        (H, W); all False for a map of zeros.

    Raises:
        ExplanationError: A value is NaN.
    """
    # A map of zeros is divided by 1. NaN and negative values are otsu's to refuse.
    share = fused / (fused.max() or 1)
    support = share[~(share <= 0)]
    if support.size == 0:
        return np.zeros(fused.shape, dtype=np.bool_)
    marked = share > otsu(support)
    return np.asarray(marked if marked.any() else share > 0)


def find_regions(fused: NDArray[np.float32], *, most: int = 8) -> tuple[Region, ...]:
    """Find the connected places that an explanation map marks.

    Args:
        fused: (H, W) explanation map, 0 or more.
        most: How many to return at the most.

    Returns:
        Regions by their share of the map's sum, largest first. Pixels that touch at a corner belong together. `peak`
        is the map's value, not rescaled. Empty for a map of zeros.

    Raises:
        ExplanationError: A value is NaN.
    """
    occupied = cv2.boundingRect((fused != 0).view(np.uint8))  # the rest of a large picture costs memory for nothing
    left_px, top_px, width_px, height_px = occupied
    fused = fused[top_px : top_px + height_px, left_px : left_px + width_px]
    if fused.size == 0:
        return ()
    marked = marked_pixels(fused)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    sums = np.bincount(labels.ravel(), weights=fused.ravel().astype(np.float64), minlength=count)
    by_mass = sorted(range(1, count), key=lambda label: -sums[label])[:most]  # label 0 is the background
    regions = []
    for label in by_mass:
        left, top, width, height, area = (int(number) for number in stats[label])
        box = np.s_[top : top + height, left : left + width]
        peak = float(fused[box][labels[box] == label].max())
        share = float(sums[label] / sums.sum())
        regions.append(Region(top_px + top, left_px + left, height, width, area, peak, share))
    return tuple(regions)
