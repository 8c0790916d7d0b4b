"""Faithfulness of a map to the network, in a few passes with every explanation: its top pixels alone, and removed.

Each number comes with that of random blobs of the same area as a baseline. All is measured in the one explained window
where the class scores highest, as the network sees it.
"""

import zlib
from collections.abc import Iterator
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain.budget import confidence
from inspect_xai.explain.pixel_order import PixelOrder
from inspect_xai.maths import metrics, sise, tiles
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation, Status

REMOVED_SHARES = (0.05, 0.1, 0.2)
"""Shares of the window's pixels that are removed for the deletion number."""

PASSES = 2 * (1 + len(REMOVED_SHARES))
"""Forward passes: one batch of a CPU's usual size."""

_BLOBS = (7, 7)  # random maps are as coarse as most networks' deepest block


def measure_faithfulness(
    engine: Engine,
    picture: NDArray[np.uint8],
    explanation: Explanation,
    order: PixelOrder,
    *,
    target: int,
    against: int,
) -> dict[str, float]:
    """Measure an explanation of class `target` on the network.

    Args:
        engine: Of the model.
        picture: uint8 (H, W, C) in the network's channel order.
        explanation: Of that picture.
        order: Of its pixels.
        target: Index of the class explained.
        against: Index of its rival, or `ALL_OTHERS`.

    Returns:
        drop_percent: share of the score that is lost when only the top 15 % of the pixels are shown; lower is better.
        increase_percent: 100 where showing only them raises the score, else 0; higher is better.
        deletion_percent: mean share of the score left when the top 5, 10 and 20 % are removed; lower is better.
        The same three with `_random` for blobs of the same area, and `passes`. Empty where there is no map.
    """
    explained = [tile for tile in explanation.tiles if tile.status is Status.EXPLAINED]
    if not explained:
        return {}
    scores = confidence(np.array([tile.scores for tile in explained]), target, against)
    best, full = explained[int(np.argmax(scores))], float(scores.max())
    if not full > 0:
        return {}
    window = tiles.cut(picture, best.tile, engine.card.input)
    size = (window.shape[0], window.shape[1])
    fill = sise.baseline_picture(window, explanation.settings.baseline, mean=engine.mean_px)
    rank = order.in_window(best.tile, engine.card.input)
    blobs = -random_blobs(size, seed=zlib.crc32(np.ascontiguousarray(window).tobytes()))
    shown, hidden = (np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) for pixels in (window, fill))
    planes = np.empty((PASSES, *shown.shape), np.float32)  # in the engine's order of axes: it copies nothing
    for into, gone in zip(planes, chain(_taken_away(rank), _taken_away(blobs)), strict=True):
        into[:] = shown
        np.copyto(into, hidden, where=gone)
    scores = confidence(engine.predict(np.moveaxis(planes, 1, -1)), target, against)
    ours, chance = (_numbers(full, half) for half in np.split(scores, 2))
    of_both = (("", ours), ("_random", chance))
    measured = {f"{name}{suffix}": numbers[name] for name in ours for suffix, numbers in of_both}
    return measured | {"passes": float(PASSES)}


def _taken_away(values: NDArray[np.generic]) -> Iterator[NDArray[np.bool_]]:
    """Yield the hidden pixels (h, w) for one order, smallest value first: all but the first, then more of the first."""
    kept, *removed = (metrics.share_of(values.size, share) for share in (metrics.KEPT_SHARE, *REMOVED_SHARES))
    yield ~sise.k_smallest(values, kept)
    for count in removed:
        yield sise.k_smallest(values, count)


def _numbers(full: float, scores: NDArray[np.float64]) -> dict[str, float]:
    return {
        "drop_percent": float(metrics.drop_percent(full, scores[0])),
        "increase_percent": float(metrics.increase_percent(full, scores[0])),
        "deletion_percent": float(100 * scores[1:].mean() / full),
    }


def random_blobs(size: tuple[int, int], *, seed: int) -> NDArray[np.float32]:
    """Draw a smooth random map (h, w).

    Single random pixels would be no fair baseline: scattered holes spoil any picture.
    """
    coarse = np.random.default_rng(seed).random(_BLOBS, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.float32)
