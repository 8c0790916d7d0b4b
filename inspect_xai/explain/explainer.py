"""From a picture to its explanation: the engine's numbers and the paper's equations, in turn."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.explain.batch_size import settle_bucket
from inspect_xai.explain.batching import Clock, Task, run_together
from inspect_xai.explain.block_maps import BlockMapsOnPicture
from inspect_xai.explain.budget import FEWEST_PASSES, Limit
from inspect_xai.explain.faithfulness import measure_faithfulness
from inspect_xai.explain.verdict import excess, judge, predict, worst_window
from inspect_xai.explain.window import WindowMaps, explain_window
from inspect_xai.maths import regions, sise, tiles
from inspect_xai.model.bundle import ModelBundle, check_from_outside, load_bundle
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.model.session import cores_left_to_sessions
from inspect_xai.records import (
    Baseline,
    ExplainSettings,
    Explanation,
    Fit,
    Method,
    PictureLimits,
    Prediction,
    Profile,
    Status,
    Tile,
    Verdict,
    VerdictSpec,
)

_FLAT_SPREAD = 0.05  # method notes 9.1: mask scores this close together say little
_BASELINE_SCORES = 0.5  # method notes 9.6
_SUPPORT_SHARE = (0.001, 0.6)  # method notes 9.11
MOST_WINDOWS = 64
"""Windows of a picture that are explained unless something else is asked for: those that score highest."""

MOST_SECONDS = 600.0
"""After so long no further window of a picture is begun."""

PROFILE_SHARE = {Profile.EXACT: 1.0, Profile.FAST: 0.25, Profile.QUICK: 0.10}  # of the passes that every mask takes


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One picture cut for the network, which has not seen it yet.

    Attributes:
        picture: uint8 (H, W, C) in the network's channel order.
        tiles: The windows, N of them.
        first: The windows of the first run, float32 (n, h, w, C) in pixel units, in memory as the network takes them.
    """

    picture: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    first: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One picture as the network saw it, window by window, before anything is explained.

    Attributes:
        picture: uint8 (H, W, C) in the network's channel order.
        tiles: The windows, N of them.
        scores: (N, K) float32 probabilities.
        prediction: What the network said of the worst window.
        verdict: What the line should do.
    """

    picture: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    scores: NDArray[np.float32]
    prediction: Prediction
    verdict: Verdict


class Explainer:
    """Judges and explains pictures with one model bundle.

    Example:
        >>> with Explainer("magnetic-tile.bundle") as explainer:  # doctest: +SKIP
        ...     explanation = explainer("part42.png", target="crack")
        ...     explanation.fused.shape  # rows and columns of the picture

    Args:
        bundle: A bundle folder, a loaded bundle, or an open engine to share; whoever opened that closes it.
        device: "auto", "cpu", "cuda" or "cuda:N".
        method: How to explain; default: the card's. What each costs: see `explain/methods.py`.
        mu: Selection threshold in [0, 1) as a share of the largest alpha; default: the card's.
        baseline: What stands where a mask hides the picture; default: the card's.
        profile: How many masks are scored by a forward pass of their own; default: the card's. "fast" and "quick"
            approximate the map of mu = 0, and take that mu unless another is given.
        max_passes: Spend at most so many passes on a picture; masks beyond that get predicted scores, and windows for
            which nothing is left are not explained.
        budget_s: The same in seconds; at least a few passes are made on one window even if they take longer.
        max_windows: Explain at most so many windows of a picture, those that score highest; None: all. Whatever was
            asked, no window is begun after `MOST_SECONDS`.
        threads: Threads inside one operator; default: all cores.
        bucket: Masks per run; default: what was measured on this machine (see `explain/batch_size.py`), else the
            device's.
        memory_mb: Most memory that a CUDA session takes; default: all there is.
        verdict: Thresholds to judge by; default: the card's.
        faithfulness: Measure with every explanation whether it is true to the network, in a few passes more that count
            neither as `passes` nor against a bound (see `explain/faithfulness.py`).
        limits: What picture files may be and how they become pixels; default: those of a line whose settings say
            nothing. A line's own are `load_settings().line.limits`.

    Raises:
        BundleError: If the folder is no sound bundle.
        DeviceError: If the device asked for does not run.
        SettingsError: If mu lies outside [0, 1), or a bound is too low to say anything.
    """

    def __init__(
        self,
        bundle: Engine | ModelBundle | Path | str,
        *,
        device: str = "auto",
        method: Method | str | None = None,
        mu: float | None = None,
        baseline: Baseline | str | None = None,
        profile: Profile | str | None = None,
        max_passes: int | None = None,
        budget_s: float | None = None,
        max_windows: int | None = MOST_WINDOWS,
        threads: int | None = None,
        bucket: int | None = None,
        memory_mb: int | None = None,
        verdict: VerdictSpec | None = None,
        faithfulness: bool = True,
        limits: PictureLimits | None = None,
    ) -> None:
        shared = bundle if isinstance(bundle, Engine) else None
        given = bundle.bundle if isinstance(bundle, Engine) else bundle
        loaded = given if isinstance(given, ModelBundle) else load_bundle(Path(given))
        spec = loaded.card.explain
        self.card = replace(loaded.card, verdict=verdict or loaded.card.verdict)
        """The card of the bundle, with the thresholds that count here."""
        self.method = Method(method or spec.method)
        if not loaded.blocks:
            check_from_outside(self.method, said_by="method")
        self.profile = Profile(profile or spec.profile)
        usual_mu = spec.mu if self.profile is Profile.EXACT else 0.0
        self.mu = usual_mu if mu is None else mu
        self.baseline = Baseline(baseline or spec.baseline)
        self.max_passes, self.budget_s, self.threads = max_passes, budget_s, threads
        self.max_windows, self.faithfulness = max_windows, faithfulness
        self.limits = limits or PictureLimits()
        if not 0 <= self.mu < 1:
            raise SettingsError(
                f"mu is {self.mu}", expected="0 <= mu < 1", remedy="0 keeps every positive channel; 0.3 is usual"
            )
        if max_passes is not None and max_passes < FEWEST_PASSES:
            raise SettingsError(f"max_passes is {max_passes}", expected=f"at least {FEWEST_PASSES}")
        if max_windows is not None and max_windows < 1:
            raise SettingsError(f"max_windows is {max_windows}", expected="at least 1")
        if budget_s is not None and not budget_s > 0:
            raise SettingsError(f"the budget is {budget_s} seconds", expected="more than 0")
        self.engine = shared or Engine(loaded, device=device, threads=threads, memory_mb=memory_mb)
        self.bucket_from = None if shared else settle_bucket(self.engine, asked=bucket)

    def look(self, picture: NDArray[np.uint8]) -> Look:
        """Judge a picture by its worst window: `prepare`, `scores` and `judge` in one.

        Args:
            picture: uint8 (H, W), or RGB (H, W, 3).

        Raises:
            PictureError: If the array is no picture.
            ExplanationError: If the network puts out something that is not a number.
        """
        seen = self.prepare(picture)
        return self.judge(seen, self.scores(seen))

    def prepare(self, picture: NDArray[np.uint8]) -> Prepared:
        """Cut a picture for the network; another thread may do so while the network is at work.

        Args:
            picture: uint8 (H, W), or RGB (H, W, 3).

        Raises:
            PictureError: If the array is no picture.
        """
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
            raise PictureError(
                f"the picture is {picture.dtype} of shape {picture.shape}",
                expected="uint8 of shape (H, W), or RGB of shape (H, W, 3)",
            )
        spec = self.engine.card.input
        seen = tiles.as_channels(picture, spec.channels)
        windows = tiles.windows((seen.shape[0], seen.shape[1]), spec)
        is_one_plane = picture.ndim == 2 and spec.fit is not Fit.LETTERBOX  # whose edges have a colour
        source = picture[..., np.newaxis] if is_one_plane else seen
        return Prepared(seen, windows, self._cut(source, windows[: self.engine.bucket]))

    def scores(self, seen: Prepared) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of a picture's windows.

        Raises:
            ExplanationError: If the network puts out something that is not a number.
        """
        rest = (self._cut(seen.picture, tiles) for tiles in self._runs(seen.tiles[len(seen.first) :]))
        return np.concatenate([self.engine.predict(windows) for windows in chain([seen.first], rest)])

    def judge(self, seen: Prepared, scores: NDArray[np.float32]) -> Look:
        """Judge a picture by its windows' `scores`, with the thresholds that count here."""
        worst = worst_window(scores, self.card)
        prediction = predict(scores[worst], self.card, tile=worst)
        return Look(seen.picture, seen.tiles, scores, prediction, judge(scores[worst], self.card))

    def explain(self, look: Look, *, target: str, against: str | None = None) -> Explanation:
        """Explain why a picture's windows score for a class; `explain_together` does it for several pictures.

        Explained are the windows in which the class reaches its threshold (less the card's margin), or the one window
        where it scores highest; for an OK label the worst window, which decided the verdict.

        Args:
            look: What `look` returned for the picture.
            target: Label to explain.
            against: Rival label of a contrast explanation: the evidence for target rather than against.

        Raises:
            SettingsError: For a label that is not the model's.
            ExplanationError: If the network's numbers are not finite.
        """
        return explain_together([Question(self, look, target, against)])[0]

    def __call__(
        self, picture: NDArray[np.uint8] | Path | str, target: str | int | None = None, against: str | int | None = None
    ) -> Explanation:
        """Look at a picture and explain it.

        Args:
            picture: uint8 (H, W) or RGB (H, W, 3), or the path of a picture file, read within `limits`.
            target: Label or its index; default: the label the network predicts.
            against: Rival label or its index; default: all other labels.
        """
        if isinstance(picture, Path | str):
            from inspect_xai.intake.sources import read_picture

            picture = read_picture(Path(picture), limits=self.limits).pixels
        look = self.look(picture)
        named = look.prediction.label if target is None else self._label(target)
        return self.explain(look, target=named, against=None if against is None else self._label(against))

    def close(self) -> None:
        """Free the engine's sessions."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _class(self, label: str) -> int:
        if label not in self.card.labels:
            raise SettingsError(
                f"the model {self.card.name} has no label {label!r}", expected=f"one of {', '.join(self.card.labels)}"
            )
        return self.card.labels.index(label)

    def _label(self, target: str | int) -> str:
        if isinstance(target, str):
            return target
        if not 0 <= target < len(self.card.labels):
            raise SettingsError(f"class index {target}", expected=f"0 to {len(self.card.labels) - 1}")
        return self.card.labels[target]

    def _runs(self, windows: Sequence[Tile]) -> Iterator[Sequence[Tile]]:
        """Yield the windows of each run, so that a huge picture is never held twice."""
        for start in range(0, len(windows), self.engine.bucket):
            yield windows[start : start + self.engine.bucket]

    def _cut(self, picture: NDArray[np.uint8], windows: Sequence[Tile]) -> NDArray[np.float32]:
        """Cut windows (n, h, w, C) straight into the order of axes that the engine would copy them into.

        Of a gray picture one plane (H, W, 1) is enough for all channels.
        """
        spec = self.engine.card.input
        planes = np.empty((len(windows), spec.depth, spec.height, spec.width), np.float32)
        for into, tile in zip(planes, windows, strict=True):
            window = tiles.cut_pixels(picture, tile, spec)
            if window.shape[2] == 1:  # numbers are copied faster than pixels become numbers
                into[0] = window[..., 0]
                into[1:] = into[0]
            else:
                into[:] = np.moveaxis(window, -1, 0)
        return np.moveaxis(planes, 1, -1)

    def _within_bound(self, wanted: list[Tile], look: Look, target: int) -> list[Tile]:
        """Under a bound take the windows that score highest first, and no more than the passes are enough for."""
        most = len(wanted) if self.max_windows is None else self.max_windows
        if self.max_passes is None and self.budget_s is None and len(wanted) <= most:
            return wanted
        scores = {tile.index: float(score) for tile, score in zip(look.tiles, look.scores[:, target], strict=True)}
        first = sorted(wanted, key=lambda tile: -scores[tile.index])[:most]
        return first if self.max_passes is None else first[: max(1, self.max_passes // FEWEST_PASSES)]

    def _windows_to_explain(self, look: Look, target: str) -> list[Tile]:
        worst = look.prediction.tile
        if target in self.card.ok_labels:
            return [look.tiles[worst]]
        column = self.card.defect_labels.index(target)
        over = excess(look.scores, self.card)[:, column]
        flagged = over >= -self.card.verdict.unsure_margin
        if not flagged.any():
            flagged[int(np.argmax(over))] = True
        return [tile for tile, wanted in zip(look.tiles, flagged, strict=True) if wanted]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One picture to explain, and as what: see `Explainer.explain`."""

    explainer: Explainer
    look: Look
    target: str
    against: str | None = None
    only: frozenset[int] | None = None  # of the windows that would be explained, those with these indices

    @property
    def windows(self) -> int:
        """How many of its windows are to be explained."""
        wanted = len(self.explainer._windows_to_explain(self.look, self.target))
        return wanted if self.explainer.max_windows is None else min(wanted, self.explainer.max_windows)


@cores_left_to_sessions()
def explain_together(questions: Sequence[Question]) -> list[Explanation]:
    """Explain several pictures, whose masks share the network's runs.

    The maps are those of each picture alone, to the rounding that the number of masks in a run makes. A picture with
    a bound in seconds is explained for itself: its clock would run while others are at work.

    Args:
        questions: Of explainers on one engine.

    Raises:
        SettingsError: For a label that is not the model's.
        ExplanationError: If the network's numbers are not finite, of any of the pictures.
    """
    jobs = [_Job(question) for question in questions]
    free = [job for job in jobs if job.explainer.budget_s is None]
    windows = run_together(free[0].engine, (task for job in free for task in job.begin())) if free else []
    in_order = iter(windows)
    return [
        job.finish(
            list(islice(in_order, len(job.tasks)))
            if job.explainer.budget_s is None
            else run_together(job.engine, job.begin(), at_once=1)
        )
        for job in jobs
    ]


class _Job:
    """One picture on its way: what is asked of it, and the work on its windows as far as it was begun."""

    def __init__(self, question: Question) -> None:
        self.explainer, self.look, self.only = question.explainer, question.look, question.only
        self.engine = self.explainer.engine
        explainer, against = self.explainer, question.against
        self.settings = ExplainSettings(
            explainer.method, question.target, against or "", explainer.mu, explainer.baseline, explainer.profile,
            explainer.max_passes or 0, explainer.budget_s or 0.0,
        )  # fmt: skip
        self.target = explainer._class(question.target)
        self.against = ALL_OTHERS if against is None else explainer._class(against)
        if self.against == self.target:
            raise SettingsError(
                f"target and against are both {question.target!r}", expected="two different labels"
            )  # fmt: skip
        self.wanted = explainer._windows_to_explain(self.look, question.target)
        self.tasks: list[Task[WindowMaps]] = []

    def begin(self) -> Iterator[Task[WindowMaps]]:
        """Begin window after window, as long as there is time."""
        explainer, started = self.explainer, time.perf_counter()
        budget_s, max_passes = explainer.budget_s, explainer.max_passes
        chosen = explainer._within_bound(self.wanted, self.look, self.target)
        until = started + (MOST_SECONDS if budget_s is None else budget_s)
        for number, tile in enumerate(chosen, start=1):
            if self.only is not None and tile.index not in self.only:
                continue
            if self.tasks and self.only is None and time.perf_counter() > until:
                return
            limit = Limit(
                PROFILE_SHARE[explainer.profile],
                None if max_passes is None else max_passes // len(chosen),
                None if budget_s is None else started + budget_s * number / len(chosen),
            )
            clock = Clock()
            (window,) = explainer._cut(self.look.picture, [tile])
            work = explain_window(
                self.engine, window, tile, settings=self.settings, target=self.target, against=self.against,
                limit=limit, clock=clock,
            )  # fmt: skip
            self.tasks.append(Task(work, clock))
            yield self.tasks[-1]

    def finish(self, windows: list[WindowMaps]) -> Explanation:
        """Put the windows together, and measure whether the map is true."""
        told = {
            "int8_scoring": any(task.in_8_bits for task in self.tasks),
            "windows_left_out": len(windows) < len(self.wanted),
        }
        results = sorted(windows, key=lambda window: window.explained.tile.index)
        results[0] = replace(results[0], notes=(*results[0].notes, *(note for note, true in told.items() if true)))
        clock = Clock()
        for task in self.tasks:
            clock.add(task.clock)
        with clock.step("maps"):
            size = (self.look.picture.shape[0], self.look.picture.shape[1])
            found = _join(
                results, self.look, self.settings, size=size, engine=self.engine, timings_ms=clock.spent_ms
            )  # fmt: skip
        if not self.explainer.faithfulness:
            return found
        with clock.step("faithfulness"):
            measured = measure_faithfulness(
                self.engine, self.look.picture, found, target=self.target, against=self.against
            )  # fmt: skip
        return replace(found, faithfulness=measured)


def _join(
    windows: Sequence[WindowMaps],
    look: Look,
    settings: ExplainSettings,
    *,
    size: tuple[int, int],
    engine: Engine,
    timings_ms: dict[str, float],
) -> Explanation:
    """Put the maps of the explained windows back onto the picture."""
    spec = engine.card.input
    explained = tuple(window.explained for window in windows)
    placed = [window.tile for window in explained]

    def on_picture(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return tiles.stitch(maps, placed, size)

    fused = on_picture([window.fusion.fused for window in windows])
    rank = sise.rank_map(
        fused,
        on_picture([window.fusion.before_last for window in windows]),
        on_picture([window.fusion.deepest for window in windows]),
    )
    named = [end.tensor for end in engine.bundle.blocks if any(end.tensor in window.drawn for window in windows)]
    statuses = [window.explained.status for window in windows]
    status = next((s for s in (Status.EXPLAINED, Status.NOT_EXPLAINED) if s in statuses), Status.NO_EVIDENCE)
    return Explanation(
        status=status,
        settings=settings,
        prediction=look.prediction,
        fused=fused,
        rank=rank,
        block_maps=BlockMapsOnPicture(named, explained, window_hw=(spec.height, spec.width), picture_hw=size),
        tiles=explained,
        regions=regions.find_regions(fused),
        passes=sum(window.passes for window in windows),
        provider=engine.provider,
        timings_ms=timings_ms,
        notes=_notes(windows, fused, settings, engine),
        embedding=tuple(np.mean([w.embedding for w in windows], axis=0).tolist()),  # of no numbers: no numbers
    )


def _leaves_out(windows: Sequence[WindowMaps], fused: NDArray[np.float32]) -> bool:
    """Whether the windows cover less than the picture."""
    return sum(window.explained.tile.height_px * window.explained.tile.width_px for window in windows) < fused.size


def _notes(
    windows: Sequence[WindowMaps], fused: NDArray[np.float32], settings: ExplainSettings, engine: Engine
) -> tuple[str, ...]:
    """Say what a reader of the map must know (method notes, section 9)."""
    explained = [window.explained for window in windows if window.explained.status is Status.EXPLAINED]
    support = float((fused > 0).mean())
    found = {
        "only_the_middle": engine.card.input.fit is Fit.CENTER_CROP and _leaves_out(windows, fused),
        "ok_label_has_no_place": settings.target in engine.card.ok_labels,
        "scores_predicted": any(block.predicted for window in windows for block in window.explained.blocks),
        "low_score_spread": any(tile.score_spread < _FLAT_SPREAD for tile in explained),
        "baseline_scores_class": any(window.explained.baseline_score > _BASELINE_SCORES for window in windows),
        "tiny_support": bool(explained) and support < _SUPPORT_SHARE[0],
        "wide_support": bool(explained) and support > _SUPPORT_SHARE[1],
    }
    from_methods = (note for window in windows for note in window.notes)
    return tuple(dict.fromkeys([*(note for note, true in found.items() if true), *from_methods, *engine.notes]))
