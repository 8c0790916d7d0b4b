"""Regions of the picture: the part, the border, boxes, and the share of a map in them."""

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER_SHARE = 0.05
"""Width of the picture's border, as a share of its shorter side: there are fixtures, vignettes and stamps."""

_ALIKE = 6.0  # robust standard deviations within which a pixel looks like the background ...
_LEAST_PX = 8.0  # ... but at least this many gray levels
_LEAST_BACKGROUND, _MOST_BACKGROUND = 0.02, 0.9
_CALM = 20.0  # a border of larger variation shows the part itself, not background


def border(size: tuple[int, int], *, share: float = BORDER_SHARE) -> NDArray[np.bool_]:
    """Mark the border of a picture (H, W), its width a share of the shorter side and at least one pixel."""
    width = max(1, round(share * min(size)))
    marked = np.ones(size, dtype=np.bool_)
    marked[width : size[0] - width, width : size[1] - width] = False
    return marked


def part_region(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Segment the part from the background around it.

    Background is connected to the picture's edge and as bright as most of that edge. Where the edge varies too much to
    be background, or hardly anything or nearly everything is as bright, the whole picture is the part.

    Args:
        picture: uint8 (H, W) gray or (H, W, 3) RGB.

    Returns:
        (H, W), True on the part.
    """
    gray = picture if picture.ndim == 2 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(gray, (0, 0), 1.5), dtype=np.float64)
    edge = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    level = float(np.median(edge))
    spread = 1.4826 * float(np.median(np.abs(edge - level)))
    whole = np.ones(gray.shape, dtype=np.bool_)
    if spread > _CALM:
        return whole
    alike = np.abs(smooth - level) <= max(_LEAST_PX, _ALIKE * spread)
    _, labels = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    at_edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    background = np.isin(labels, at_edge[at_edge > 0])
    return ~background if _LEAST_BACKGROUND <= background.mean() <= _MOST_BACKGROUND else whole


def share_inside(fused: NDArray[np.floating], region: NDArray[np.bool_]) -> float:
    """Measure which share of a map (H, W), 0 or more, lies in a region (H, W); 0 for a map of zeros."""
    total = fused.sum(dtype=np.float64)
    return float(fused.sum(dtype=np.float64, where=region) / total) if total > 0 else 0.0


def dilate(truth: NDArray[np.bool_], *, reach_px: int) -> NDArray[np.bool_]:
    """Widen a mask (H, W) by `reach_px` pixels in every direction."""
    side = 2 * reach_px + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(truth.astype(np.uint8), disc), dtype=np.bool_)


def boxes_mask(boxes: tuple[tuple[int, int, int, int], ...], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill boxes (top, left, height, width) into a mask (H, W)."""
    marked = np.zeros(size, dtype=np.bool_)
    for top, left, height, width in boxes:
        marked[max(0, top) : top + height, max(0, left) : left + width] = True
    return marked
