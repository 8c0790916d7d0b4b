"""The methods an audit compares SISE with: what they show the network, and what they make of its answers.

A block end has C feature maps of (h, w); the window is (H, W). Gradients are those of the class's margin. Methods that
hide parts of the picture yield masks (1: seen) chunk by chunk; one mask is one forward pass, and what they yield does
not depend on the size of the chunks. Every method ends in `evidence_map`, so that all are ranked by one rule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.maths.sise import Fusion, interpolation, rank_map, upsample
from inspect_xai.records import CellGrid

RISE_CELLS = 7
"""Cells of RISE's coarse grid along the window's shorter side."""

RISE_SEEN = 0.5
"""Probability that a cell is seen."""

RISE_NOISE = 0.25
"""RISE may stop below this noise (`RiseEstimate.noise`): the map then correlates with its limit at about 0.97."""


def evidence_map(
    signed: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Turn what a method found into an explanation map and its ranking.

    What argues against the class becomes 0, at block resolution as the papers have it; among those zeros the signed
    values still order the ranking, as SISE's companion maps do for its own zeros.

    Args:
        signed: (h, w) from any method here.
        size: (H, W) of the window.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        The map (H, W), 0 or more, not rescaled; the rank map (H, W).

    Raises:
        ExplanationError: A value is not finite.
    """
    fusion = as_fusion(signed, size, grid=grid)
    return fusion.fused, rank_map(fusion.fused, fusion.before_last, fusion.deepest)


def as_fusion(signed: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None) -> Fusion:
    """Return the maps that `evidence_map` ranks by: evidence (H, W), signed values, and what breaks their ties.

    Beyond the outer cells of a grid values are continued and alike; there the nearer pixel comes first.

    Raises:
        ExplanationError: A value is not finite.
    """
    if not np.isfinite(signed).all():
        raise ExplanationError("a rival method's map holds values that are NaN or infinite")
    evidence, companion = (upsample(found, size, grid=grid) for found in (np.maximum(signed, 0), signed))
    return Fusion(evidence, companion, _nearness(signed.shape, size, grid) if grid else companion, ())


def _nearness(cells: Sequence[int], size: tuple[int, int], grid: CellGrid) -> NDArray[np.float32]:
    """Minus the pixels (H, W) from the outer cells; 0 among the cells."""
    beyond = []
    for count, side, axis in zip(cells, size, (grid.rows, grid.columns), strict=True):
        pixels, last = np.arange(side), axis.first_px + (count - 1) * axis.step_px
        beyond.append(np.maximum(0, np.maximum(axis.first_px - pixels, pixels - last)))
    return np.asarray(-np.add.outer(*beyond), np.float32)


def grad_cam(features: NDArray[np.floating], gradients: NDArray[np.floating]) -> NDArray[np.float32]:
    """Weigh each feature map by the mean of its gradient.

    Args:
        features: (C, h, w).
        gradients: (C, h, w).

    Returns:
        (h, w), signed.

    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), equations 1 and 2.
    """
    return _combined(gradients.mean(axis=(1, 2), dtype=np.float64), features)


def grad_cam_plus_plus(features: NDArray[np.floating], gradients: NDArray[np.floating]) -> NDArray[np.float32]:
    """Weigh each feature map by its positive gradients, each discounted by how much the whole map agrees with it.

    With the exponential that the paper puts behind the score, the weight of a place is g^2 / (2 g^2 + g^3 sum(A)),
    which is 1 / (2 + g sum(A)); no epsilon is needed and none is used.

    Args:
        features: (C, h, w).
        gradients: (C, h, w).

    Returns:
        (h, w), signed.

    Source: Chattopadhay et al., "Grad-CAM++" (WACV 2018), equations 5 and 19.
    """
    uphill = np.maximum(gradients.astype(np.float64), 0)
    discount = 2 + uphill * features.sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    # Signed feature maps can bring the denominator to 0, which the paper, with its ReLU, never meets.
    weights = np.divide(uphill, discount, out=np.zeros_like(uphill), where=discount != 0).sum(axis=(1, 2))
    return _combined(weights, features)


def hires_cam(features: NDArray[np.floating], gradients: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply each feature map by its gradient place by place, and add up: no place is marked that was not used.

    Args:
        features: (C, h, w).
        gradients: (C, h, w).

    Returns:
        (h, w), signed.

    Source: Draelos and Carin, "HiResCAM" (2020), equation 4.
    """
    return np.asarray(np.einsum("khw,khw->hw", features, gradients, dtype=np.float64), dtype=np.float32)


def layer_cam(features: NDArray[np.floating], gradients: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply each feature map by its positive gradients place by place, and add up.

    On a tensor that feeds a strided layer, which a block end is, the gradient has the stride's grid in it.

    Args:
        features: (C, h, w).
        gradients: (C, h, w).

    Returns:
        (h, w), signed where feature maps are.

    Source: Jiang et al., "LayerCAM" (IEEE TIP 2021), equations 6 and 7.
    """
    return hires_cam(features, np.maximum(gradients, 0))


def fuse_layer_cams(
    maps: Sequence[NDArray[np.floating]], size: tuple[int, int], *, grids: Sequence[CellGrid | None] = ()
) -> NDArray[np.float32]:
    """Put the LayerCAM maps of several block ends together: each brought to one scale, then the largest of them.

    Args:
        maps: (h, w) each, of any resolution.
        size: (H, W) of the window.
        grids: Where the cells of each lie; default: from edge to edge.

    Returns:
        (H, W), 0 or more; what argues against the class is 0.

    Source: LayerCAM, equation 8 and the fusion that follows it.
    """
    scaled = [
        upsample(np.maximum(found, 0), size, grid=grid)
        for found, grid in zip(maps, grids or [None] * len(maps), strict=True)
    ]
    return np.asarray(np.max([np.tanh(2 * found / (found.max() or 1)) for found in scaled], axis=0), dtype=np.float32)


def score_cam_weights(scores: ArrayLike) -> NDArray[np.float64]:
    """Turn the scores of masked pictures into weights: their softmax.

    The paper takes the scores' increase over the baseline's; that constant cancels in a softmax.

    Args:
        scores: (n,) one per feature map whose mask was scored.

    Returns:
        (n,) positive, adding up to 1.

    Source: Wang et al., "Score-CAM" (CVPRW 2020), equations 5 and 6, algorithm 1.
    """
    score = np.asarray(scores, dtype=np.float64)
    powers = np.exp(score - score.max())
    return np.asarray(powers / powers.sum())


def score_cam(features: NDArray[np.floating], scores: ArrayLike) -> NDArray[np.float32]:
    """Weigh each feature map by the score of the picture seen through it.

    Args:
        features: (n, h, w) those with contrast (`sise.with_contrast`), at least one.
        scores: (n,) of the masked pictures.

    Returns:
        (h, w), signed where feature maps are.

    Source: as `score_cam_weights`.
    """
    return _combined(score_cam_weights(scores), features)


def _combined(weights: NDArray[np.float64], features: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(np.einsum("k,khw->hw", weights, features), dtype=np.float32)


def rise_masks(
    size: tuple[int, int], *, seed: int, count: int, chunk: int, cells: int = RISE_CELLS, seen: float = RISE_SEEN
) -> Iterator[NDArray[np.float32]]:
    """Draw RISE's masks: a coarse grid of cells, each seen or not, enlarged smoothly and shifted by part of a cell.

    Cells are square, as near as they can be: a longer side has more of them. Each mask is stretched to [0, 1], because
    the scoring graph stretches what it is given: so the mask that is accumulated is the one that was seen.

    Args:
        size: (H, W) of the window.
        seed: Same seed, same masks.
        count: How many in all.
        chunk: How many at a time, at the most.
        cells: Along the shorter side.
        seen: Probability that a cell is seen, above 0 and below 1.

    Yields:
        (m, H, W) masks, m up to `chunk`.

    Source: Petsiuk et al., "RISE" (BMVC 2018), section 3.2.
    """
    rng = np.random.default_rng(seed)
    cell = -(-min(size) // cells)
    grid = -(-size[0] // cell), -(-size[1] // cell)
    # One cell more than the window has, so that every shift by less than a cell still covers it.
    rows, columns = (interpolation((cells_along + 1) * cell, cells_along) for cells_along in grid)
    for start in range(0, count, chunk):
        masks = np.empty((min(chunk, count - start), *size), dtype=np.float32)
        for mask in masks:
            is_seen = rng.random(grid) < seen
            top, left = rng.integers(0, cell, 2)
            drawn = rows[top : top + size[0]] @ is_seen @ columns[left : left + size[1]].T
            span = float(np.ptp(drawn))
            mask[:] = (drawn - drawn.min()) / span if span > 0 else drawn
        yield masks


@dataclass(frozen=True, slots=True, eq=False)
class RiseEstimate:
    """What RISE knows after some masks: per pixel, the running mean of score times mask and how much it still moves.

    Attributes:
        count: Masks scored.
        mean: (H, W) mean of score * mask.
        squares: (H, W) sum of squared deviations from that mean.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "RiseEstimate":
        """Start with no mask scored on a window (H, W)."""
        return cls(0, np.zeros(size), np.zeros(size))

    def add(self, masks: NDArray[np.float32], scores: ArrayLike) -> "RiseEstimate":
        """Take in more masks (m, H, W) and the scores (m,) of the pictures seen through them.

        Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
        """
        score = np.asarray(scores, dtype=np.float64)
        if score.shape != (len(masks),) or not np.isfinite(score).all():
            raise ExplanationError(f"{len(masks)} masks came with scores {score}", expected="one finite score for each")
        if len(masks) == 0:
            return self
        seen = masks.astype(np.float64)
        mean = np.tensordot(score, seen, 1) / len(masks)
        squares = np.tensordot(score**2, seen**2, 1) - len(masks) * mean**2
        total = self.count + len(masks)
        step = mean - self.mean
        return RiseEstimate(
            total,
            self.mean + step * (len(masks) / total),
            self.squares + np.maximum(squares, 0) + step**2 * (self.count * len(masks) / total),
        )

    def noise(self) -> float:
        """Compare how uncertain the map's pixels are with how much they differ: 0 is settled, infinite is all noise.

        Root mean square of the pixels' standard errors over the standard deviation of the map.
        """
        spread = float(self.mean.std())
        if self.count < 2 or spread == 0:
            return float("inf")
        return float(np.sqrt(self.squares.mean() / (self.count * (self.count - 1))) / spread)

    def signed(self) -> NDArray[np.float32]:
        """Return the map (H, W) so far, its smallest value moved to 0: every pixel gets the score of an average mask.

        Source: RISE, equation 6; division by the probability of being seen changes only its scale.
        """
        return np.asarray(self.mean - self.mean.min(), dtype=np.float32)


def recipro_masks(size: tuple[int, int], *, spread: bool = True) -> NDArray[np.float32]:
    """Make ReciproCAM's masks on the feature maps: each shows one place, and fades out over its neighbors.

    Args:
        size: (h, w) of the feature maps.
        spread: Whether neighbors show through (1/4 at the place, 1/8 beside it, 1/16 across corners); else it alone.

    Returns:
        (h * w, h, w), places in reading order.

    Source: Byun and Lee, "ReciproCAM" (CVPRW 2024), section 3.
    """
    if not spread:
        return np.eye(size[0] * size[1], dtype=np.float32).reshape(-1, *size)
    rows, columns = (np.eye(side) / 2 + np.eye(side, k=1) / 4 + np.eye(side, k=-1) / 4 for side in size)
    return np.kron(rows, columns).reshape(-1, *size).astype(np.float32)


def recipro_features(
    features: NDArray[np.float32], *, chunk: int, spread: bool = True
) -> Iterator[NDArray[np.float32]]:
    """Yield the feature maps with all but one place masked, for the layers behind the block end to score.

    Args:
        features: (C, h, w).
        chunk: How many at a time, at the most.
        spread: As in `recipro_masks`.

    Yields:
        (m, C, h, w), places in reading order.
    """
    masks = recipro_masks((features.shape[1], features.shape[2]), spread=spread)
    for start in range(0, len(masks), chunk):
        yield masks[start : start + chunk, np.newaxis] * features


def recipro_cam(scores: ArrayLike, size: tuple[int, int]) -> NDArray[np.float32]:
    """Lay the scores of the single places out as a map, the smallest moved to 0.

    Args:
        scores: (h * w,) in the order of `recipro_features`.
        size: (h, w).

    Returns:
        (h, w), 0 or more.
    """
    laid_out = np.asarray(scores, dtype=np.float64).reshape(size)
    return np.asarray(laid_out - laid_out.min(), dtype=np.float32)


def occlusion_windows(size: tuple[int, int], *, patch: int, stride: int) -> list[tuple[slice, slice]]:
    """Slide a square patch over a window (H, W), row by row; the last step of each axis ends at the border."""
    along = []
    for side in size:
        length = min(patch, side)
        starts = [*range(0, side - length, stride), side - length]
        along.append([slice(start, start + length) for start in starts])
    return [(rows, columns) for rows in along[0] for columns in along[1]]


def occlusion_masks(size: tuple[int, int], *, patch: int, stride: int, chunk: int) -> Iterator[NDArray[np.float32]]:
    """Yield masks that hide one patch each.

    Args:
        size: (H, W) of the window.
        patch: Side of the square that is hidden, in pixels; smaller than the window.
        stride: From one place to the next.
        chunk: How many at a time, at the most.

    Yields:
        (m, H, W), 0 in the patch and 1 elsewhere.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), section 4.2.
    """
    hidden = occlusion_windows(size, patch=patch, stride=stride)
    for start in range(0, len(hidden), chunk):
        masks = np.ones((min(chunk, len(hidden) - start), *size), dtype=np.float32)
        for mask, place in zip(masks, hidden[start:], strict=False):
            mask[place] = 0
        yield masks


def occlusion_map(
    scores: ArrayLike, size: tuple[int, int], *, full: float, patch: int, stride: int
) -> NDArray[np.float32]:
    """Give each pixel the mean drop of the score over the patches that hid it.

    Args:
        scores: (n,) in the order of `occlusion_masks`.
        size: (H, W) of the window.
        full: The score of the whole picture.
        patch: As in `occlusion_masks`.
        stride: As in `occlusion_masks`.

    Returns:
        (H, W), signed: negative where hiding helps the class. 0 where a stride wider than the patch left a gap.
    """
    drops, times = np.zeros(size), np.zeros(size)
    hidden = occlusion_windows(size, patch=patch, stride=stride)
    for place, score in zip(hidden, np.asarray(scores, dtype=np.float64), strict=True):
        drops[place] += full - score
        times[place] += 1
    return np.asarray(np.divide(drops, times, out=drops, where=times > 0), dtype=np.float32)
