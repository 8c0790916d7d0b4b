"""Sanity checks of the maps that need no ground truth.

A map must change when the network's weights are shuffled, should hardly change under a change of the picture that does
not matter, and must be the same when it is computed twice.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.request import explain
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import look
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import similarity, sise
from inspect_xai.model.build.randomize import randomized_copy, stages
from inspect_xai.model.engine import Engine
from inspect_xai.records import Method, PictureLimits

GATE = 0.5
"""A map of the network with all weights shuffled must have a rank correlation with the real one below this."""

FUSED = "fused"
_BRIGHTER, _JPEG_QUALITY = 1.05, 90

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Maps:
    """Maps and score of an explanation, for comparison."""

    fused: NDArray[np.float32]
    rank: NDArray[np.int32]
    blocks: dict[str, NDArray[np.float32]]
    score: float

    def named(self, name: str) -> NDArray[np.float32]:
        """Return a block's map or the fused one; zeros where the block has none."""
        return self.fused if name == FUSED else self.blocks.get(name, np.zeros_like(self.fused))


@dataclass(frozen=True, slots=True)
class Step:
    """Similarity of maps, by block and fused, when all weights from `downto` on are shuffled.

    Attributes:
        downto: Block end, or "head".
        correlation: Median rank correlation by block end, and "fused".
        ssim: Median SSIM likewise.
    """

    downto: str
    correlation: dict[str, float]
    ssim: dict[str, float]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the picture that does not matter, and its effect on the map: medians over pictures."""

    name: str
    correlation: float
    ssim: float
    overlap: float  # of the top 15 % of pixels
    score: float  # largest change of the class's probability


@dataclass(frozen=True, slots=True)
class Sanity:
    """Result of the checks for one method.

    Attributes:
        method: The method checked.
        pictures: Number of pictures.
        steps: The cascade, from the head alone down to all weights.
        passed: Whether the fused map changed when all weights were shuffled.
        changes: Brightness, shift, JPEG.
        repeat: Largest difference between two runs; 0 is the same map bit for bit.
    """

    method: Method
    pictures: int
    steps: tuple[Step, ...]
    passed: bool
    changes: tuple[Change, ...]
    repeat: float


def check_sanity(
    engine: Engine,
    parts: Sequence[tuple[Path, str]],
    *,
    settings: ExplainSettings,
    seed: int,
    limits: PictureLimits,
    keep: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Sanity:
    """Run the checks that are not done yet.

    Args:
        engine: Of the model.
        parts: Pictures and the label to explain, at least one.
        settings: How to explain, by the method to check.
        seed: Of the shuffled weights.
        limits: How files become pixels.
        keep: JSON file of the checks done, written after each; those of the same settings are not repeated.
        on_step: Called with the steps done and their total.

    Raises:
        UnsupportedModelError: If the network's weights are not stored in its graph.
    """
    settings = replace(settings, faithfulness=False)
    order = list(reversed(stages(engine.bundle)))
    how = (settings.method, settings.profile, settings.mu, settings.baseline, seed)
    explained = [[str(path), label] for path, label in parts]
    progress = _Progress.open(keep, of=[engine.bundle.fingerprint, *how, asdict(limits), explained])
    report = on_step or (lambda *_: None)
    total = len(order) + len(_CHANGES) + 1
    report(progress.count, total)
    pictures, before = list[tuple[Picture, str]](), list[_Maps]()
    if progress.count < total:
        pictures = [
            (_strongest_window(engine, read_picture(path, limits=limits).pixels, label), label) for path, label in parts
        ]
        before = [_maps(engine, settings, picture, label) for picture, label in pictures]
    for downto in order:
        if downto not in progress.steps:
            progress.steps[downto] = _forget(engine, settings, pictures, before, downto=downto, seed=seed)
            progress.write()
            report(progress.count, total)
    for name in _CHANGES:
        if name not in progress.changes:
            progress.changes[name] = _change(engine, settings, pictures, before, name)
            progress.write()
            report(progress.count, total)
    if progress.repeat is None:
        again = [_maps(engine, settings, picture, label) for picture, label in pictures]
        progress.repeat = max(
            float(np.abs(one.fused - two.fused).max()) for one, two in zip(before, again, strict=True)
        )
        progress.write()
        report(total, total)
    steps = tuple(progress.steps[downto] for downto in order)
    changes = tuple(progress.changes[name] for name in _CHANGES)
    return Sanity(settings.method, len(parts), steps, steps[-1].correlation[FUSED] < GATE, changes, progress.repeat)


@dataclass(slots=True)
class _Progress:
    """The checks done so far, and their file."""

    path: Path | None
    of: list[Any]
    steps: dict[str, Step] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    repeat: float | None = None

    @classmethod
    def open(cls, path: Path | None, *, of: list[Any]) -> Self:
        """Read the file if it is of the same checks."""
        if path is None or not path.exists():
            return cls(path, of)
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["of"] != of:
            return cls(path, of)
        steps = {name: Step(**step) for name, step in stored["steps"].items()}
        changes = {name: Change(**change) for name, change in stored["changes"].items()}
        return cls(path, of, steps, changes, stored["repeat"])

    @property
    def count(self) -> int:
        """Number of checks done."""
        return len(self.steps) + len(self.changes) + (self.repeat is not None)

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            draft = self.path.with_name(f"{self.path.name}.part")
            draft.write_text(json.dumps(asdict(self) | {"path": None}, allow_nan=False), encoding="utf-8")
            draft.replace(self.path)


def _forget(
    engine: Engine,
    settings: ExplainSettings,
    pictures: Sequence[tuple[Picture, str]],
    before: Sequence[_Maps],
    *,
    downto: str,
    seed: int,
) -> Step:
    with tempfile.TemporaryDirectory() as scratch:
        copy = randomized_copy(engine.bundle, Path(scratch) / "copy", downto=downto, seed=seed)
        with Explainer(copy, device=engine.device, threads=engine.threads) as other:
            after = [_maps(other.engine, settings, picture, label) for picture, label in pictures]
    names = [*dict.fromkeys(name for maps in before for name in maps.blocks), FUSED]
    correlation, ssim = {}, {}
    for name in names:
        pairs = [
            (one.named(name), two.named(name))
            for one, two in zip(before, after, strict=True)
            if name == FUSED or name in one.blocks
        ]
        correlation[name] = float(np.median([similarity.rank_correlation(*pair) for pair in pairs]))
        ssim[name] = float(np.median([similarity.ssim(*pair) for pair in pairs]))
    return Step(downto, correlation, ssim)


def _change(
    engine: Engine,
    settings: ExplainSettings,
    pictures: Sequence[tuple[Picture, str]],
    before: Sequence[_Maps],
    name: str,
) -> Change:
    change, undo = _CHANGES[name]
    rows = []
    for (picture, label), one in zip(pictures, before, strict=True):
        two = _maps(engine, settings, change(picture), label)
        moved = undo(two.fused)
        rows.append(
            (
                similarity.rank_correlation(one.fused, moved),
                similarity.ssim(one.fused, moved),
                similarity.top_overlap(one.rank, np.asarray(undo(two.rank))),
                abs(one.score - two.score),
            )
        )
    correlation, ssim, overlap, _ = (float(number) for number in np.median(rows, axis=0))
    return Change(name, correlation, ssim, overlap, max(row[3] for row in rows))


def _maps(engine: Engine, settings: ExplainSettings, picture: Picture, label: str) -> _Maps:
    seen = look(engine, picture)
    score = float(seen.scores[:, engine.card.labels.index(label)].max())
    try:
        explanation = explain(engine, seen, settings, target=label)
    except ExplanationError:  # a shuffled network may have no gradient left: then there is no evidence for the label
        nothing = np.zeros(picture.shape[:2], np.float32)
        return _Maps(nothing, sise.rank_map(nothing, nothing, nothing), {}, score)
    return _Maps(explanation.fused, explanation.rank, dict(explanation.block_maps), score)


def _strongest_window(engine: Engine, picture: Picture, label: str) -> Picture:
    """Cut out the window where the label scores highest, so that shuffled networks explain the same place."""
    seen = look(engine, picture)
    tile = seen.tiles[int(np.argmax(seen.scores[:, engine.card.labels.index(label)]))]
    rows = slice(max(0, tile.top_px), tile.top_px + tile.height_px)
    columns = slice(max(0, tile.left_px), tile.left_px + tile.width_px)
    return np.ascontiguousarray(picture[rows, columns])


def _brighter(picture: Picture) -> Picture:
    return np.asarray(np.clip(np.rint(picture * _BRIGHTER), 0, 255), np.uint8)


def _shifted(values: NDArray[Any], by: int) -> NDArray[Any]:
    """Move down and right by `by` pixels; the edge is repeated."""
    rows = np.clip(np.arange(values.shape[0]) - by, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - by, 0, values.shape[1] - 1)
    return np.asarray(values[np.ix_(rows, columns)])


def _compressed(picture: Picture) -> Picture:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)


# A change of the picture, and the change that moves its map back onto the first one's pixels.
_CHANGES: dict[str, tuple[Callable[[Picture], Picture], Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "5 % brighter": (_brighter, lambda values: values),
    "shifted by 1 px": (
        lambda picture: np.asarray(_shifted(picture, 1), np.uint8),
        lambda values: _shifted(values, -1),
    ),
    "JPEG quality 90": (_compressed, lambda values: values),
}
