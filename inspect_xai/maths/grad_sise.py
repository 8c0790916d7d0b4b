"""Grad-SISE on arrays: SISE's block maps made finer by gradients, and held in a region that suffices for the class.

SISE's block map says which feature maps matter, not where inside each; its cascade lets the coarsest map decide alone
what is seen. Here each block's map is multiplied by a map of its pixel-wise gradients, the blocks are multiplied
instead of added, and what cuts the product off is one of several regions of equal size: the one which, shown alone,
leaves most of the class's score. The network is asked that between `regions` and `fuse_within`.

Sources: method notes, sections 8 and 9; SISE and LayerCAM as in `sise` and `cams`.
Equations: docs/measurements/methods.md.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.maths import cams, sise
from inspect_xai.maths.metrics import KEPT_SHARE, share_of
from inspect_xai.records import CellGrid

FLOOR = 0.05
"""Added to each factor, so that one block that misses a place does not delete it. From 0.02 to 0.2 little changes."""

GRID_SIGMA_CELLS = 1.0
"""Gradients at a block end that feeds a stride of 2 differ between even and odd cells; this wipes that grid out."""


def gradient_map(
    features: NDArray[np.floating],
    gradients: NDArray[np.floating],
    size: tuple[int, int],
    *,
    feeds_stride: bool,
    grid: CellGrid | None = None,
) -> NDArray[np.float32] | None:
    """Turn one block end's pixel-wise gradients into a map of where its features argue for the class.

    Args:
        features: (C, h, w).
        gradients: (C, h, w) of the class's margin.
        size: (H, W) of the window.
        feeds_stride: Whether a strided layer follows, as it does behind every block end but the deepest.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (H, W) in [0, 1], or None where nothing argues for the class, or all alike.
    """
    local = np.maximum(cams.layer_cam(features, gradients), 0)
    if feeds_stride:
        local = cv2.GaussianBlur(local, (0, 0), GRID_SIGMA_CELLS, borderType=cv2.BORDER_REFLECT_101)
    return sise.normalized(local, size, grid=grid)


def multiply(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Multiply block maps and gradient maps, each raised by `FLOOR`.

    Args:
        maps: (H, W) each in [0, 1], at least one.

    Returns:
        (H, W) stretched to [0, 1]; all zero where every map is constant.

    Raises:
        ExplanationError: There is no map.
    """
    if not maps:
        raise ExplanationError("there is no map to multiply", remedy="report NO_EVIDENCE with a map of zeros instead")
    # A sum of logarithms: ten factors of 0.05 are 1e-13, and order among such places still counts.
    product = np.exp(np.sum([np.log(found.astype(np.float64) + FLOOR) for found in maps], axis=0))
    above = product - product.min()
    return np.asarray(above / (above.max() or 1.0), dtype=np.float32)


def regions(product: NDArray[np.float32], coarse: Sequence[NDArray[np.floating]]) -> list[NDArray[np.bool_]]:
    """Draw regions of equal area that might suffice for the class.

    Each holds the product's own peak (what exceeds its Otsu threshold) and is filled up in the order of one map.

    Args:
        product: (H, W) from `multiply`.
        coarse: (H, W) maps to fill up by.

    Returns:
        One (H, W) for the product itself and one for each coarse map, each True on exactly `metrics.KEPT_SHARE`.
    """
    peak = (product > sise.otsu(product)).astype(np.float32)
    area = share_of(product.size, KEPT_SHARE)
    orders = [sise.rank_map(peak, found, product) for found in (product, *coarse)]
    return [sise.top_k(rank, area) for rank in orders]


def fuse_within(product: NDArray[np.float32], region: NDArray[np.bool_]) -> sise.Fusion:
    """Cut the product off outside the region; the product itself breaks the ties that this makes.

    Args:
        product: (H, W).
        region: (H, W).
    """
    return sise.Fusion(product * region, product, product, ())
