"""Product-CAM and Grad-SISE on arrays: block maps multiplied, and put into one order with the deepest block's CAM.

SISE's block map says which feature maps matter, not where inside each; its cascade lets the coarsest map decide alone
what is seen. Here each block's map of pixel-wise gradients (Product-CAM), and SISE's block maps besides (Grad-SISE),
are multiplied instead of added. Gradients are averaged over a window and noisy copies of it: one gray level of noise
moves single gradients more than a defect does. What lies around the product's peak is ordered by Grad-CAM.

Sources: method notes, sections 8 and 9; SISE, LayerCAM and Grad-CAM as in `sise` and `cams`; averaging over noisy
copies: Smilkov et al., "SmoothGrad" (2017). Equations: docs/measurements/methods.md.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import sise
from inspect_xai.maths.metrics import share_of
from inspect_xai.records import CellGrid

FLOOR = 0.05
"""Added to each factor, so that one block that misses a place does not delete it. From 0.02 to 0.2 little changes."""

GRID_SIGMA_CELLS = 1.0
"""Gradients at a block end that feeds a stride of 2 differ between even and odd cells; this wipes that grid out."""

NOISY_COPIES = 4
"""Of a window, traced beside it."""

NOISE_SIGMA = 2.0
"""Standard deviation of the noise on a copy, in gray levels of 255: what a camera has."""

DEEP_POWER = 6
"""Of Grad-CAM as a factor: it holds the product where the network's last block looks."""

PEAK_SHARE = 0.04
"""Of the window's pixels, ordered by the product; what follows is ordered by Grad-CAM."""

_NOISE_SEED = 0


def noisy_copies(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a window and its noisy copies, the same noise in every run.

    Args:
        window: (H, W, C) in pixel units.

    Returns:
        (1 + NOISY_COPIES, H, W, C), the window itself first.
    """
    rng = np.random.default_rng(_NOISE_SEED)
    noise = NOISE_SIGMA * rng.standard_normal((NOISY_COPIES, *window.shape), dtype=np.float32)
    return np.concatenate([window[np.newaxis], window + noise])


def gradient_map(
    local: NDArray[np.floating], size: tuple[int, int], *, feeds_stride: bool, grid: CellGrid | None = None
) -> NDArray[np.float32] | None:
    """Turn one block end's LayerCAM into a map of where its features argue for the class.

    Args:
        local: (h, w), `cams.layer_cam` with its negative part cut off, averaged over the noisy copies.
        size: (H, W) of the window.
        feeds_stride: Whether a strided layer follows, as it does behind every block end but the deepest.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (H, W) in [0, 1], or None where nothing argues for the class, or all alike.
    """
    smooth = np.asarray(local)
    if feeds_stride:
        smooth = cv2.GaussianBlur(smooth, (0, 0), GRID_SIGMA_CELLS, borderType=cv2.BORDER_REFLECT_101)
    return sise.normalized(smooth, size, grid=grid)


def fuse(
    factors: Sequence[NDArray[np.float32]],
    grad_cam: NDArray[np.floating],
    size: tuple[int, int],
    *,
    grid: CellGrid | None = None,
) -> sise.Fusion:
    """Multiply maps, and put what lies around the product's peak into the order of the deepest block's Grad-CAM.

    The map takes the product's own values in that order, so that map and ranking say the same.

    Args:
        factors: (H, W) each in [0, 1]: gradient maps, and block maps where there are any.
        grad_cam: (h, w), signed, `cams.grad_cam` of the deepest block end, averaged over the noisy copies.
        size: (H, W) of the window.
        grid: Where the cells of `grad_cam` lie; None: from edge to edge.

    Returns:
        The map in [0, 1], with Grad-CAM and the product to break the ties of its zeros.
    """
    around = sise.upsample(grad_cam, size, grid=grid)
    product = np.zeros(size)
    for factor in factors:
        product += np.log(factor.astype(np.float64) + FLOOR)
    deep = sise.normalized(np.maximum(grad_cam, 0), size, grid=grid)
    if deep is not None:
        product += DEEP_POWER * np.log(deep.astype(np.float64) + FLOOR)
    product -= product.max()
    peak = np.zeros(product.size, np.bool_)
    peak[sise.lexsort(-product.ravel(), -around.ravel())[: share_of(product.size, PEAK_SHARE)]] = True
    order = sise.lexsort(~peak, -np.where(peak, product.ravel(), around.ravel()), -product.ravel())
    values = np.sort(np.exp(product), axis=None)[::-1]
    fused = np.empty(product.size, np.float32)
    fused[order] = (values - values[-1]) / ((values[0] - values[-1]) or 1.0)
    return sise.Fusion(fused.reshape(size), around, product.astype(np.float32), ())
