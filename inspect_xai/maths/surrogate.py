"""Approximation of the map with a fraction of the forward passes: score some masks, predict the other scores.

Every selected channel keeps its own density in the map; only its score is predicted. A Gaussian process over the masks,
brought to one coarse grid, predicts the logarithm of the score: masks that show the network the same part of the
picture score alike. The masks to score are chosen beforehand, by the variance they would leave, so a longer budget only
adds masks to a shorter one's.

Measured on real defect networks (benchmarks/profiles.py); choosing masks by the size of alpha gives another map and no
approximation of this one.

Source: the Gaussian-process regression of Rasmussen and Williams (2006), chapter 2 and section 5.4.1; the greedy choice
is the pivoted Cholesky factorization of the prior covariance.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths.sise import interpolation
from inspect_xai.records import CellGrid

GRID = 7
"""Masks are compared on at most 7 x 7 cells: the deepest block end of a 224 px network, which has most masks."""

_LINEAR = 0.1  # share of the kernel that adds up cell by cell; the rest falls off with distance
_PRIOR_LENGTH = 0.7  # of the median distance between masks, before any score is known
_LENGTHS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0)
_DETAIL = 0.05  # of a mask's variance at most: detail of a mask that is finer than the grid
_NOISE = 1e-2  # of the scores' variance: masks that agree on the grid still differ
_DETAIL_NOISE = 0.1  # of a mask's detail, added to that
_DEEPEST_WEIGHT = 2.0  # the deepest block's map cuts away from all the others; measured: more starves them
_LEAST_LEFT = 1e-6  # of the prior variance, before dividing by it
_ALIKE = 1e-12  # squared distances of masks in [0, 1] below this are rounding
_LEAST_SCORE = 1e-7  # log of a float32 probability is rounding below this


def describe_masks(
    features: NDArray[np.floating],
    *,
    cells: tuple[int, int],
    size: tuple[int, int] | None = None,
    grid: CellGrid | None = None,
) -> NDArray[np.float64]:
    """Bring feature maps of any resolution to masks on one coarse grid.

    Args:
        features: (n, h, w) with contrast.
        cells: (rows, columns) of the coarse grid, from edge to edge of the window.
        size: (H, W) of the window; needed with `grid`.
        grid: Where the feature maps' own cells lie; None: from edge to edge.

    Returns:
        (n, rows * columns), each map stretched to [0, 1] and averaged by area.
    """
    low = features.min(axis=(1, 2), keepdims=True).astype(np.float64)
    span = features.max(axis=(1, 2), keepdims=True) - low
    masks: NDArray[np.float64] = np.divide(features - low, span, out=np.zeros(features.shape), where=span > 0)
    if grid is None or size is None:
        rows, columns = (_averaging(out, given) for out, given in zip(cells, features.shape[1:], strict=True))
    else:
        rows, columns = (
            _averaging(out, side) @ interpolation(side, given, axis)
            for out, side, given, axis in zip(cells, size, features.shape[1:], (grid.rows, grid.columns), strict=True)
        )
    return np.asarray((rows @ masks @ columns.T).reshape(len(features), cells[0] * cells[1]))


@lru_cache(maxsize=64)
def _averaging(size_out: int, size_in: int) -> NDArray[np.float64]:
    """Write averaging by area along one axis as a matrix (size_out, size_in); each row sums to 1.

    >>> _averaging(2, 4).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = np.linspace(0, size_in, size_out + 1)
    cell = np.arange(size_in)
    overlap = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    covered = np.clip(overlap, 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True))


def unseen_detail(shape: tuple[int, int], *, cells: tuple[int, int]) -> float:
    """Return the share of a mask's variance that the grid does not show: 0 where the mask is no finer than it.

    >>> unseen_detail((7, 7), cells=(7, 7)), unseen_detail((14, 14), cells=(7, 7))
    (0.0, 0.0375)
    """
    return _DETAIL * max(0.0, 1 - cells[0] * cells[1] / (shape[0] * shape[1]))


def order_masks(
    masks: NDArray[np.float64], blocks: NDArray[np.intp], *, detail: NDArray[np.float64], count: int
) -> NDArray[np.intp]:
    """Choose the masks whose scores reduce the variance of all others most, best first.

    Args:
        masks: (n, d) from `describe_masks`, all blocks together.
        blocks: (n,) number of the block each mask belongs to, the deepest block's the largest. Blocks count alike in
            the fused map however many masks they have, so a mask weighs one over its block's number; the deepest
            block's map also cuts all others to its support, so its masks weigh twice that.
        detail: (n,) from `unseen_detail`: variance that no other mask explains.
        count: How many to choose.

    Returns:
        (min(count, n),) indices. A smaller count gives a prefix of a larger one's.
    """
    covariance = _kernel(masks, masks, _PRIOR_LENGTH * _typical_distance(masks), _LINEAR)
    covariance[np.diag_indices(len(masks))] += detail
    weight = np.where(blocks == blocks.max(initial=0), _DEEPEST_WEIGHT, 1.0) / np.bincount(blocks)[blocks]
    unknown = np.diag(covariance).copy()
    factor = np.zeros((min(count, len(masks)), len(masks)))
    chosen = np.empty(len(factor), np.intp)
    left = np.ones(len(masks), bool)
    for step in range(len(factor)):
        pick = int(np.argmax(np.where(left, unknown * weight, -1.0)))
        chosen[step], left[pick] = pick, False
        row = covariance[pick] - factor[:step].T @ factor[:step, pick]
        factor[step] = row / np.sqrt(max(unknown[pick], _LEAST_LEFT))
        unknown = np.maximum(unknown - factor[step] ** 2, 0.0)
    return chosen


def predict_scores(
    masks: NDArray[np.float64], scored: NDArray[np.intp], scores: NDArray[np.float64], *, detail: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Predict every mask's score from those that were scored.

    Args:
        masks: (n, d) from `describe_masks`.
        scored: (m,) indices of the masks scored, at least two.
        scores: (m,) their scores in [0, 1].
        detail: (n,) from `unseen_detail`.

    Returns:
        (n,) in [0, 1]; the scored ones as they were scored.
    """
    known = masks[scored]
    logs = np.log(np.maximum(scores, _LEAST_SCORE))
    center = logs.mean()
    noise = _NOISE + _DETAIL_NOISE * detail[scored]
    length, linear, weights = _best_fit(known, logs - center, distance=_typical_distance(masks), noise=noise)
    predicted: NDArray[np.float64] = np.exp(np.minimum(center + _kernel(masks, known, length, linear) @ weights, 0.0))
    predicted[scored] = scores
    return predicted


def _best_fit(
    known: NDArray[np.float64], values: NDArray[np.float64], *, distance: float, noise: NDArray[np.float64]
) -> tuple[float, float, NDArray[np.float64]]:
    """Try length scales with and without the linear part; keep what makes the values most likely."""
    best: tuple[float, float, float, NDArray[np.float64]] | None = None
    squares, products = _squared_distances(known, known), known @ known.T
    for length in (share * distance for share in _LENGTHS):
        near = _near(squares.copy(), length)
        for linear in (0.0, _LINEAR):
            covariance = (near + linear * products if linear else near) + np.diag(noise)
            weights = np.asarray(np.linalg.solve(covariance, values), np.float64)
            variance = max(float(values @ weights) / len(values), 1e-12)
            spread = 0.5 * float(np.linalg.slogdet(covariance).logabsdet)
            likelihood = -0.5 * len(values) * np.log(variance) - spread
            if best is None or likelihood > best[0]:
                best = (likelihood, length, linear, weights)
    assert best is not None  # noqa: S101  the loops are not empty
    return best[1:]


def _kernel(one: NDArray[np.float64], other: NDArray[np.float64], length: float, linear: float) -> NDArray[np.float64]:
    near = _near(_squared_distances(one, other), length)
    return near + linear * (one @ other.T) if linear else near


def _near(squares: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Turn squared distances, in place, into the kernel of masks, 1 where they are alike."""
    squares /= -2 * length**2
    return np.exp(squares, out=squares)


def _typical_distance(masks: NDArray[np.float64]) -> float:
    """Return the median distance between masks, of about 200 of them to all; 1 where all are alike."""
    some = masks[:: max(1, len(masks) // 200)]
    return float(np.sqrt(np.median(_squared_distances(some, masks)))) or 1.0


def _squared_distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return those of all rows of two matrices; scipy has this, but takes 25 MB of every process that explains."""
    apart = -2 * (one @ other.T)
    apart += (one**2).sum(axis=1)[:, np.newaxis]
    apart += (other**2).sum(axis=1)
    apart[apart < _ALIKE] = 0.0
    return apart


def grid_of(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the grid masks are compared on: the deepest block end's cells, at most 7 x 7."""
    return min(GRID, shapes[-1][0]), min(GRID, shapes[-1][1])
