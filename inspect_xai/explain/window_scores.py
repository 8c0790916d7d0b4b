"""Scores of a picture's windows, and the verdict on the worst, before anything is explained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError
from inspect_xai.explain.verdict import excess, judge, predict, worst_window
from inspect_xai.maths import tiles
from inspect_xai.model.engine import Engine
from inspect_xai.records import Fit, InputSpec, ModelCard, Prediction, Tile, Verdict, VerdictSpec


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPicture:
    """One picture cut into windows, not yet scored.

    Attributes:
        picture: uint8 (H, W, C) in the network's channel order.
        tiles: The windows, N of them.
        first: The windows of the first run, float32 (n, h, w, C) in pixel units, in memory as the network takes them.
    """

    picture: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    first: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class WindowScores:
    """Scores of one picture, window by window, and the verdict.

    Attributes:
        picture: uint8 (H, W, C) in the network's channel order.
        tiles: The windows, N of them.
        scores: (N, K) float32 probabilities.
        prediction: Of the worst window.
        verdict: By the worst window.
        thresholds: Of the verdict.
    """

    picture: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    scores: NDArray[np.float32]
    prediction: Prediction
    verdict: Verdict
    thresholds: VerdictSpec

    def alone(self, index: int) -> Self:
        """Return the same picture with one of its windows only, which then decides."""
        prediction = replace(self.prediction, tile=0)
        return replace(self, tiles=(self.tiles[index],), scores=self.scores[[index]], prediction=prediction)

    def windows_to_explain(self, card: ModelCard, target: str) -> list[Tile]:
        """Return the windows that explain a label.

        They are those in which the label reaches its threshold (less the margin), or the one window where it scores
        highest; for an OK label the worst window, which decided the verdict.
        """
        if target in card.ok_labels:
            return [self.tiles[self.prediction.tile]]
        over = excess(self.scores, card, self.thresholds)[:, card.defect_labels.index(target)]
        flagged = over >= -self.thresholds.unsure_margin
        if not flagged.any():
            flagged[int(np.argmax(over))] = True
        return [tile for tile, wanted in zip(self.tiles, flagged, strict=True) if wanted]


def prepare_picture(engine: Engine, picture: NDArray[np.uint8]) -> PreparedPicture:
    """Cut a picture, uint8 (H, W) or RGB (H, W, 3), for the network; another thread may do so while it runs.

    Raises:
        PictureError: If the array is no picture.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
        raise PictureError(
            f"the picture is {picture.dtype} of shape {picture.shape}",
            expected="uint8 of shape (H, W), or RGB of shape (H, W, 3)",
        )
    spec = engine.card.input
    seen = tiles.as_channels(picture, spec.channels)
    windows = tiles.windows((seen.shape[0], seen.shape[1]), spec)
    return PreparedPicture(seen, windows, cut_windows(seen, windows[: engine.bucket], spec))


def score_windows(engine: Engine, prepared: PreparedPicture) -> NDArray[np.float32]:
    """Return the probabilities (N, K) of a picture's windows.

    Raises:
        ExplanationError: If the network's output is not a number.
    """
    left = prepared.tiles[len(prepared.first) :]
    rest = (cut_windows(prepared.picture, run, engine.card.input) for run in _runs(left, engine.bucket))
    return np.concatenate([engine.predict(windows) for windows in chain([prepared.first], rest)])


def judge_windows(
    card: ModelCard, prepared: PreparedPicture, scores: NDArray[np.float32], thresholds: VerdictSpec | None = None
) -> WindowScores:
    """Judge a picture by its windows' scores (N, K) and thresholds (default: the card's): the worst one decides."""
    chosen = thresholds or card.verdict
    worst = worst_window(scores, card, chosen)
    prediction = predict(scores[worst], card, tile=worst)
    verdict = judge(scores[worst], card, chosen)
    return WindowScores(prepared.picture, prepared.tiles, scores, prediction, verdict, chosen)


def look(engine: Engine, picture: NDArray[np.uint8], thresholds: VerdictSpec | None = None) -> WindowScores:
    """Judge a picture, uint8 (H, W) or RGB (H, W, 3), by its worst window and thresholds (default: the card's).

    Raises:
        PictureError: If the array is no picture.
        ExplanationError: If the network's output is not a number.
    """
    prepared = prepare_picture(engine, picture)
    return judge_windows(engine.card, prepared, score_windows(engine, prepared), thresholds)


def cut_windows(picture: NDArray[np.uint8], windows: Sequence[Tile], spec: InputSpec) -> NDArray[np.float32]:
    """Cut windows (n, h, w, C) of a picture from `tiles.as_channels`, in memory in the engine's order of axes."""
    planes = np.empty((len(windows), spec.depth, spec.height, spec.width), np.float32)
    if picture.strides[2] == 0 and spec.fit is not Fit.LETTERBOX:  # one plane for all channels; edges have a color
        picture = picture[..., :1]
    for into, tile in zip(planes, windows, strict=True):
        window = tiles.cut_pixels(picture, tile, spec)
        if window.shape[2] == 1:  # numbers are copied faster than pixels become numbers
            into[0] = window[..., 0]
            into[1:] = into[0]
        else:
            into[:] = np.moveaxis(window, -1, 0)
    return np.moveaxis(planes, 1, -1)


def _runs(windows: Sequence[Tile], size: int) -> Iterator[Sequence[Tile]]:
    """Yield the windows of each run, so that a huge picture is never held twice."""
    for start in range(0, len(windows), size):
        yield windows[start : start + size]
