"""Is a map true to the network? A few passes with every explanation: what it marks shown alone, and taken away.

Beside each number stands that of blobs thrown at random over as many pixels, so that it means something. All is done in
the one explained window where the class scores highest, as the network sees it.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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
"""Of the window's pixels, taken away one after the other for the deletion number."""

PASSES = 2 * (1 + len(REMOVED_SHARES))
"""What it costs: one batch of a CPU's usual size."""

_BLOBS = (7, 7)  # random maps are as coarse as most networks' deepest block


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What the network makes of one order of pixels, in percent of the score of the whole window."""

    drop_percent: float
    increase_percent: float
    deletion_percent: float


def measure_faithfulness(
    engine: Engine,
    picture: NDArray[np.uint8],
    explanation: Explanation,
    order: PixelOrder,
    *,
    target: int,
    against: int,
) -> dict[str, float]:
    """Measure an explanation on the network that it explains.

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
        deletion_percent: share of the score left when the top 5, 10 and 20 % are taken away, on the average; lower is
        better. The same three with `_random` for blobs of the same area, and `passes`. Empty where there is no map.
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
    shown, hidden = (np.ascontiguousarray(np.moveaxis(each, -1, 0)) for each in (window, fill))
    planes = np.empty((PASSES, *shown.shape), np.float32)  # in the engine's order of axes: it copies nothing
    for into, gone in zip(planes, chain(_taken_away(rank), _taken_away(blobs)), strict=True):
        into[:] = shown
        np.copyto(into, hidden, where=gone)
    said = confidence(engine.predict(np.moveaxis(planes, 1, -1)), target, against)
    ours, chance = (_numbers(full, half) for half in np.split(said, 2))
    return {
        "drop_percent": ours.drop_percent,
        "drop_percent_random": chance.drop_percent,
        "increase_percent": ours.increase_percent,
        "increase_percent_random": chance.increase_percent,
        "deletion_percent": ours.deletion_percent,
        "deletion_percent_random": chance.deletion_percent,
        "passes": float(PASSES),
    }


def _taken_away(values: NDArray[np.generic]) -> Iterator[NDArray[np.bool_]]:
    """Yield the pixels (h, w) that are hidden for one order: all but the first ones, then more and more of the first.

    Args:
        values: (h, w) of anything that sorts, the smallest first.
    """
    kept, *removed = (metrics.share_of(values.size, share) for share in (metrics.KEPT_SHARE, *REMOVED_SHARES))
    yield ~sise.k_smallest(values, kept)
    for count in removed:
        yield sise.k_smallest(values, count)


def _numbers(full: float, said: NDArray[np.float64]) -> _Numbers:
    return _Numbers(
        float(metrics.drop_percent(full, said[0])),
        float(metrics.increase_percent(full, said[0])),
        float(100 * said[1:].mean() / full),
    )


def random_blobs(size: tuple[int, int], *, seed: int) -> NDArray[np.float32]:
    """Draw a smooth map (h, w) that knows nothing.

    Single pixels at random would be no match: scattered holes ruin any picture, and what they leave shows nothing.
    """
    coarse = np.random.default_rng(seed).random(_BLOBS, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.float32)
