"""Metrics of one explanation: against the ground truth, and against the network itself.

Localization uses the whole picture. Pixels are hidden, removed or closed in the one window in which the class scores
highest, as the network sees it, and scored there in batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain.request import explain
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import WindowScores, look
from inspect_xai.maths import metrics, picture_regions, sise, tiles
from inspect_xai.model.engine import Engine
from inspect_xai.records import Baseline, Channels, Explanation, Tile

CLOSED_REACH = 1 / 100
"""How far beyond its mask a defect is closed, as a share of the window's shorter side: masks are drawn tight."""

NEAR_REACH = 1 / 14
"""Distance from the defect within which the map's first pixel counts as on it: half a cell of the deepest block."""

ELSEWHERE_SHARE = 0.02
"""Least share of the window that is closed elsewhere, to compare with closing the defect."""


NUMBERS = (
    "aupro",
    "aupro_window",
    "ebpg",
    "bbox",
    "miou",
    "pointing",
    "near",
    "inside",
    "border",
    "elsewhere_drop",
    "road",
    "adcc",
    "coherency",
    "complexity",
    *(f"{name}_{fill}" for name in ("drop", "increase", "insertion", "deletion") for fill in Baseline),
)
"""Names of all metrics; a column each in an audit's table."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasurementContext:
    """One picture ready to be measured on.

    Attributes:
        window: float32 (h, w, C): the window where the class scores highest, in pixel units.
        tile: Which one that is.
        target: Index of the class.
        full: Its probability in that window.
        truth: bool (H, W) of the picture, or None.
        truth_seen: bool (h, w) of the window, or None where no truth is known.
        part: bool (H, W), the part itself.
        closed_drop: Share of the score that closing the defect takes; None where no truth is known.
    """

    window: NDArray[np.float32]
    tile: Tile
    target: int
    full: float
    truth: NDArray[np.bool_] | None
    truth_seen: NDArray[np.bool_] | None
    part: NDArray[np.bool_]
    closed_drop: float | None


def prepare_measurement(
    engine: Engine,
    look: WindowScores,
    *,
    target: int,
    truth: NDArray[np.bool_] | None,
    part: NDArray[np.bool_],
    seed: int,
) -> MeasurementContext:
    """Cut out the window to measure in, and measure what closing the defect does to the score.

    Args:
        engine: Of the model.
        look: The picture's window scores.
        target: Index of the class.
        truth: (H, W), True on the defect; None where it is not known.
        part: (H, W), True on the part.
        seed: Of the noise on closed pixels.
    """
    best = int(np.argmax(look.scores[:, target]))
    tile = look.tiles[best]
    window = tiles.cut(look.picture, tile, engine.card.input)
    full = float(engine.predict(window[None])[0, target])
    seen, drop = None, None
    if truth is not None:
        seen = tiles.in_window(truth, tile, engine.card.input, outside=0).astype(np.bool_)
        drop = 0.0
        if seen.any():
            closed = picture_regions.dilate(seen, reach_px=_reach(seen, CLOSED_REACH))
            drop = _drop_of_closing(engine, window, closed, target=target, full=full, seed=seed)
    return MeasurementContext(window, tile, target, full, truth, seen, part, drop)


def measure(
    engine: Engine, scene: MeasurementContext, explanation: Explanation, *, steps: int, seed: int
) -> dict[str, float]:
    """Compute every metric of one explanation of the scene's class but ADCC.

    Args:
        engine: Of the model.
        scene: From `prepare_measurement`.
        explanation: Of the scene's class.
        steps: Of the insertion and deletion curves.
        seed: Of the noise on removed pixels.

    Returns:
        Numbers by name (`NUMBERS`); ebpg, miou, bbox, pointing, aupro, near and elsewhere_drop with truth only,
        aupro_window with truth in the window only.
    """
    fused, rank = explanation.fused, explanation.rank
    numbers = {
        "border": picture_regions.share_inside(fused, picture_regions.border((fused.shape[0], fused.shape[1]))),
        "inside": picture_regions.share_inside(fused, scene.part),
    }
    if scene.truth is not None:
        near = picture_regions.dilate(scene.truth, reach_px=_reach(scene.window, NEAR_REACH))
        numbers |= {
            "ebpg": metrics.ebpg(fused, scene.truth),
            "miou": metrics.iou(rank, scene.truth),
            "bbox": metrics.bbox(rank, scene.truth),
            "pointing": float(metrics.pointing_game(rank, scene.truth)),
            "near": float(near[rank == 0].all()),
            "aupro": metrics.aupro(rank, scene.truth),
        }
    seen = sise.order_of(tiles.in_window(rank, scene.tile, engine.card.input, outside=rank.size))
    for fill in Baseline:
        hidden = sise.baseline_picture(scene.window, fill, mean=engine.mean_px)
        kept, *curves = _scores(
            engine,
            [
                metrics.keep_top(scene.window, seen, fill=hidden),
                *metrics.exchanged(hidden, scene.window, seen, steps=steps),
                *metrics.exchanged(scene.window, hidden, seen, steps=steps),
            ],
            scene.target,
        )
        numbers |= {
            f"drop_{fill}": float(metrics.drop_percent(scene.full, kept)),
            f"increase_{fill}": float(metrics.increase_percent(scene.full, kept)),
            f"insertion_{fill}": metrics.area_under(curves[: steps + 1]),
            f"deletion_{fill}": metrics.area_under(curves[steps + 1 :]),
        }
    removed = list(metrics.road(scene.window, seen, seed=seed))
    numbers["road"] = metrics.road_combined(_scores(engine, removed, scene.target))
    if scene.truth_seen is not None:
        if scene.truth_seen.any():
            numbers["aupro_window"] = metrics.aupro(seen, scene.truth_seen)
        numbers["elsewhere_drop"] = _elsewhere_drop(engine, scene, seen, seed=seed)
    return numbers


def measure_adcc(
    engine: Engine, scene: MeasurementContext, explanation: Explanation, settings: ExplainSettings
) -> dict[str, float]:
    """Compute adcc, coherency and complexity, each 0 to 1, of an explanation made by `settings`.

    Costs one more explanation, of the window seen through its own map. The map hides to the mean color: ADCC's authors
    multiply the network's input tensor, where the mean color is 0.

    Source: Poppi et al., "Revisiting the Evaluation of Class Activation Mapping" (CVPRW 2021), section 4.
    """
    spec = engine.card.input
    hidden = sise.baseline_picture(scene.window, Baseline.MEAN, mean=engine.mean_px)
    fused = tiles.in_window(explanation.fused, scene.tile, spec, outside=0).astype(np.float32)
    shown = metrics.shown_through(scene.window, fused, fill=hidden)
    seen = look(engine, _as_taken(np.clip(np.rint(shown), 0, 255).astype(np.uint8), spec.channels))
    again = explain(engine, seen, settings, target=engine.card.labels[scene.target]).fused
    drop = float(metrics.drop_percent(scene.full, seen.scores[0, scene.target])) / 100
    coherency, complexity = metrics.coherency(fused, again), metrics.complexity(fused)
    value = metrics.adcc(coherency=coherency, complexity=complexity, drop=drop)
    return {"adcc": value, "coherency": coherency, "complexity": complexity}


def _as_taken(window: NDArray[np.uint8], channels: Channels) -> NDArray[np.uint8]:
    """Turn a window (H, W, C) in the network's order back into a picture as a camera's: (H, W), or RGB."""
    match channels:
        case Channels.GRAY:
            return window[..., 0]
        case Channels.BGR:
            return window[..., ::-1]
        case Channels.RGB:
            return window


def _elsewhere_drop(engine: Engine, scene: MeasurementContext, rank: NDArray[np.int32], *, seed: int) -> float:
    """Close the map's strongest pixels away from the defect: as many as the defect has, and a few at the least."""
    assert scene.truth_seen is not None  # noqa: S101  the caller looked
    away = ~picture_regions.dilate(scene.truth_seen, reach_px=_reach(scene.window, NEAR_REACH))
    count = max(int(scene.truth_seen.sum()), metrics.share_of(rank.size, ELSEWHERE_SHARE))
    places = np.flatnonzero(away.ravel())
    strongest = places[np.argsort(rank.ravel()[places])[:count]]
    closed = np.zeros(rank.size, dtype=np.bool_)
    closed[strongest] = True
    return _drop_of_closing(
        engine, scene.window, closed.reshape(rank.shape), target=scene.target, full=scene.full, seed=seed
    )


def _drop_of_closing(
    engine: Engine, window: NDArray[np.float32], closed: NDArray[np.bool_], *, target: int, full: float, seed: int
) -> float:
    """Fill pixels in from their surroundings and return the share of the score that this takes, 0 to 1."""
    if not closed.any() or closed.all():
        return 0.0
    left = engine.predict(metrics.imputed(window, closed, np.random.default_rng(seed))[None])[0, target]
    return float(metrics.drop_percent(full, left)) / 100


def _scores(engine: Engine, windows: Iterable[NDArray[np.float32]], target: int) -> Sequence[float]:
    return [float(score) for score in engine.predict(np.stack(list(windows)))[:, target]]


def _reach(like: NDArray[np.generic], share: float) -> int:
    shorter: int = min(like.shape[:2])
    return max(1, round(share * shorter))
