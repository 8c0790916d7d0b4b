"""Rendering of an explanation map: in colors, and as an overlay on the picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths.regions import marked_pixels
from inspect_xai.records import Region

_CHUNK_PIXELS = 1 << 18  # of a large picture that are blended at a time


def color_map(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Paint a map (H, W), 0 or more, from black (0) over violet and orange to pale yellow (its largest value), in RGB.

    The scale is "inferno": its lightness grows evenly, so that it can be read by the color-blind and in gray print.
    """
    return _painted(_shares(values, _largest(values)))


def overlay(
    picture: NDArray[np.uint8], fused: NDArray[np.floating], *, opacity: float = 0.7, regions: Sequence[Region] = ()
) -> NDArray[np.uint8]:
    """Lay an explanation map over its picture.

    Opacity grows with the map: a pixel without evidence is unchanged.

    Args:
        picture: (H, W) gray or (H, W, 3) RGB.
        fused: (H, W) explanation map, 0 or more.
        opacity: Of the largest value, 0 to 1.
        regions: Those to outline, from `find_regions` on the same map.

    Returns:
        (H, W, 3) RGB; outlines are white in black, to be seen on any surface.
    """
    blended = np.empty((*fused.shape, 3), np.uint8)
    largest = _largest(fused)
    rows = max(1, _CHUNK_PIXELS // max(1, fused.shape[1]))
    for top in range(0, fused.shape[0], rows):
        photograph, shares = picture[top : top + rows], _shares(fused[top : top + rows], largest)
        share = shares[..., np.newaxis] * opacity
        photograph = photograph[..., np.newaxis] if picture.ndim == 2 else photograph
        blended[top : top + rows] = np.rint(photograph * (1 - share) + _painted(shares) * share)
    if regions:
        in_regions = np.zeros(fused.shape, dtype=np.uint8)
        marked = marked_pixels(fused.astype(np.float32))
        for region in regions:
            box = np.s_[
                region.top_px : region.top_px + region.height_px, region.left_px : region.left_px + region.width_px
            ]
            in_regions[box] |= marked[box]
        outlines, _ = cv2.findContours(in_regions, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        line = max(1, round(min(fused.shape) / 400))  # thin at any size
        cv2.drawContours(blended, outlines, -1, (0, 0, 0), thickness=3 * line)
        cv2.drawContours(blended, outlines, -1, (255, 255, 255), thickness=line)
    return blended


def _largest(values: NDArray[np.floating]) -> float:
    """Return the largest value; of a map of zeros 1, so that its shares are zeros."""
    return float(values.max()) or 1.0


def _shares(values: NDArray[np.floating], largest: float) -> NDArray[np.float64]:
    return values.astype(np.float64) / largest


def _painted(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    levels = np.rint(shares * 255).astype(np.uint8)
    painted = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(painted, dtype=np.uint8)
