"""Can the maps be believed at all? Three questions that need no truth.

Does a map change when the network forgets what it learnt (it must); does it hold still when the picture changes in a
way that does not matter (it should); is it the same when it is made again (it must be).
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
"""A map of the network that forgot everything must correlate with the real one by less than this (by rank)."""

FUSED = "fused"
_BRIGHTER, _JPEG_QUALITY = 1.05, 90

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Maps:
    """What an explanation is compared by."""

    fused: NDArray[np.float32]
    rank: NDArray[np.int32]
    blocks: dict[str, NDArray[np.float32]]
    score: float

    def named(self, name: str) -> NDArray[np.float32]:
        """A block's map or the fused one; zeros where the block has none."""
        return self.fused if name == FUSED else self.blocks.get(name, np.zeros_like(self.fused))


@dataclass(frozen=True, slots=True)
class Step:
    """The network with everything from `downto` on forgotten: likeness of maps by block and fused, over pictures.

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
    """A change that does not matter, and what it did to the map: medians over pictures."""

    name: str
    correlation: float
    ssim: float
    overlap: float  # of the top 15 % of pixels
    score: float  # largest change of the class's probability


@dataclass(frozen=True, slots=True)
class Sanity:
    """What the checks found for one method.

    Attributes:
        method: The one that was checked.
        pictures: How many pictures went through.
        steps: The cascade, from the head alone down to everything.
        passed: Whether the fused map noticed that everything was forgotten.
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
    """Run the checks, or what is left of them.

    Args:
        engine: Of the model.
        parts: Pictures and the label to explain, at least one.
        settings: How to explain, by the method to check.
        seed: Of the shuffled weights.
        limits: How files become pixels.
        keep: JSON file of the steps done, written after each; what it holds of the same checks is not done again.
        on_step: Called with the steps done and their total.

    Raises:
        UnsupportedModelError: If the network's weights are not stored in its graph.
    """
    settings = replace(settings, faithfulness=False)
    order = list(reversed(stages(engine.bundle)))
    said = (settings.method, settings.profile, settings.mu, settings.baseline, seed)
    shown = [[str(path), label] for path, label in parts]
    kept = _Kept.open(keep, of=[engine.bundle.fingerprint, *said, asdict(limits), shown])
    report = on_step or (lambda *_: None)
    total = len(order) + len(_CHANGES) + 1
    report(kept.count, total)
    pictures, before = list[tuple[Picture, str]](), list[_Maps]()
    if kept.count < total:
        pictures = [
            (_strongest_window(engine, read_picture(path, limits=limits).pixels, label), label) for path, label in parts
        ]
        before = [_maps(engine, settings, picture, label) for picture, label in pictures]
    for downto in order:
        if downto not in kept.steps:
            kept.steps[downto] = _forget(engine, settings, pictures, before, downto=downto, seed=seed)
            kept.write()
            report(kept.count, total)
    for name in _CHANGES:
        if name not in kept.changes:
            kept.changes[name] = _change(engine, settings, pictures, before, name)
            kept.write()
            report(kept.count, total)
    if kept.repeat is None:
        again = [_maps(engine, settings, picture, label) for picture, label in pictures]
        kept.repeat = max(float(np.abs(one.fused - two.fused).max()) for one, two in zip(before, again, strict=True))
        kept.write()
        report(total, total)
    steps = tuple(kept.steps[downto] for downto in order)
    changes = tuple(kept.changes[name] for name in _CHANGES)
    return Sanity(settings.method, len(parts), steps, steps[-1].correlation[FUSED] < GATE, changes, kept.repeat)


@dataclass(slots=True)
class _Kept:
    """The checks done so far, and where they are written down."""

    path: Path | None
    of: list[Any]
    steps: dict[str, Step] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    repeat: float | None = None

    @classmethod
    def open(cls, path: Path | None, *, of: list[Any]) -> Self:
        """Take up what the file holds if it is of the same checks."""
        if path is None or not path.exists():
            return cls(path, of)
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] != of:
            return cls(path, of)
        steps = {name: Step(**step) for name, step in found["steps"].items()}
        return cls(path, of, steps, {name: Change(**each) for name, each in found["changes"].items()}, found["repeat"])

    @property
    def count(self) -> int:
        """Checks done."""
        return len(self.steps) + len(self.changes) + (self.repeat is not None)

    def write(self) -> None:
        """Write down what is done: the file is there whole or not at all."""
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
    names = [*dict.fromkeys(name for found in before for name in found.blocks), FUSED]
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
        found = explain(engine, seen, settings, target=label)
    except ExplanationError:  # a network that forgot may have no gradient left: then nothing argues for the label
        nothing = np.zeros(picture.shape[:2], np.float32)
        return _Maps(nothing, sise.rank_map(nothing, nothing, nothing), {}, score)
    return _Maps(found.fused, found.rank, dict(found.block_maps), score)


def _strongest_window(engine: Engine, picture: Picture, label: str) -> Picture:
    """Cut out where the label scores highest, so that a network that forgot is asked about the same place."""
    seen = look(engine, picture)
    tile = seen.tiles[int(np.argmax(seen.scores[:, engine.card.labels.index(label)]))]
    rows = slice(max(0, tile.top_px), tile.top_px + tile.height_px)
    columns = slice(max(0, tile.left_px), tile.left_px + tile.width_px)
    return np.ascontiguousarray(picture[rows, columns])


def _brighter(picture: Picture) -> Picture:
    return np.asarray(np.clip(np.rint(picture * _BRIGHTER), 0, 255), np.uint8)


def _shifted(values: NDArray[Any], by: int) -> NDArray[Any]:
    """Move down and right by so many pixels; what comes in repeats the edge."""
    rows = np.clip(np.arange(values.shape[0]) - by, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - by, 0, values.shape[1] - 1)
    return np.asarray(values[np.ix_(rows, columns)])


def _compressed(picture: Picture) -> Picture:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)


# What is done to the picture, and what brings its map back onto the first one's pixels.
_CHANGES: dict[str, tuple[Callable[[Picture], Picture], Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "5 % brighter": (_brighter, lambda found: found),
    "shifted by 1 px": (lambda picture: np.asarray(_shifted(picture, 1), np.uint8), lambda found: _shifted(found, -1)),
    "JPEG quality 90": (_compressed, lambda found: found),
}
