"""Explanation of a picture from its windows' scores: one picture, or several that share the network's runs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import SettingsError
from inspect_xai.explain.batching import StepTimer, WindowTask, run_together
from inspect_xai.explain.block_maps import BlockMapsOnPicture
from inspect_xai.explain.budget import PassBudget
from inspect_xai.explain.faithfulness import measure_faithfulness
from inspect_xai.explain.pixel_order import PixelOrder
from inspect_xai.explain.settings import FEWEST_PASSES, MOST_SECONDS, PROFILE_SHARE, ExplainSettings
from inspect_xai.explain.window import WindowMaps, explain_window
from inspect_xai.explain.window_scores import WindowScores, cut_windows
from inspect_xai.maths import regions, tiles
from inspect_xai.model.bundle import check_from_outside
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.model.session import cores_left_to_sessions
from inspect_xai.records import Explanation, Fit, ModelCard, RecordedSettings, Status, Tile

_FLAT_SPREAD = 0.05  # method notes 9.1: mask scores this close together carry little information
_BASELINE_SCORES = 0.5  # method notes 9.6
_SUPPORT_SHARE = (0.001, 0.6)  # method notes 9.11


@dataclass(frozen=True, slots=True, eq=False)
class ExplainRequest:
    """One picture to explain, the settings and the label.

    Attributes:
        engine: Of the model.
        look: The picture, judged on that engine.
        settings: How to explain.
        target: Label to explain.
        against: Rival label of a contrast explanation: the evidence for target rather than against.
        only: Indices of windows; of those that would be explained only these are. None: all of them.

    Raises:
        UnsupportedModelError: If the method needs features or gradients of a network built as a black box.
    """

    engine: Engine
    look: WindowScores
    settings: ExplainSettings
    target: str
    against: str | None = None
    only: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if not self.engine.bundle.blocks:
            check_from_outside(self.settings.method, said_by="method")

    @property
    def windows(self) -> int:
        """How many of its windows are to be explained."""
        wanted = len(self.look.windows_to_explain(self.engine.card, self.target))
        return wanted if self.settings.max_windows is None else min(wanted, self.settings.max_windows)


def explain(
    engine: Engine, look: WindowScores, settings: ExplainSettings, *, target: str, against: str | None = None
) -> Explanation:
    """Explain why a picture's windows score for a label; `explain_together` does it for several pictures.

    Which windows: see `WindowScores.windows_to_explain`. Arguments: those of `ExplainRequest`.

    Raises:
        SettingsError: For a label that is not the model's.
        ExplanationError: If the network's numbers are not finite.
        UnsupportedModelError: If the network does not allow the method.
    """
    return explain_together([ExplainRequest(engine, look, settings, target, against)])[0]


@cores_left_to_sessions()
def explain_together(requests: Sequence[ExplainRequest]) -> list[Explanation]:
    """Explain several pictures, whose masks share the network's runs.

    The maps are those of each picture alone, up to rounding that depends on the number of masks in a run. A picture
    with a bound in seconds is explained alone: its clock would run while others are computed.

    Args:
        requests: On one engine; each may have other settings.

    Raises:
        SettingsError: For a label that is not the model's.
        ExplanationError: If the network's numbers are not finite, of any of the pictures.
    """
    jobs = [_ExplainJob(request) for request in requests]
    free = [job for job in jobs if job.settings.budget_s is None]
    windows = run_together(free[0].engine, (task for job in free for task in job.begin())) if free else []
    finished = iter(windows)
    return [
        job.finish(
            list(islice(finished, len(job.tasks)))
            if job.settings.budget_s is None
            else run_together(job.engine, job.begin(), at_once=1)
        )
        for job in jobs
    ]


class _ExplainJob:
    """One request in progress, and the tasks of its windows begun so far."""

    def __init__(self, request: ExplainRequest) -> None:
        self.engine, self.look, self.settings, self.only = request.engine, request.look, request.settings, request.only
        card = self.engine.card
        self.recorded = self.settings.recorded(target=request.target, against=request.against)
        self.target = _class_index(card, request.target)
        self.against = ALL_OTHERS if request.against is None else _class_index(card, request.against)
        if self.against == self.target:
            raise SettingsError(f"target and against are both {request.target!r}", expected="two different labels")
        self.wanted = self.look.windows_to_explain(card, request.target)
        self.tasks: list[WindowTask[WindowMaps]] = []

    def begin(self) -> Iterator[WindowTask[WindowMaps]]:
        """Begin window after window, as long as there is time."""
        settings, started = self.settings, time.perf_counter()
        budget_s, max_passes = settings.budget_s, settings.max_passes
        chosen = self._within_bound()
        until = started + (MOST_SECONDS if budget_s is None else budget_s)
        for number, tile in enumerate(chosen, start=1):
            if self.only is not None and tile.index not in self.only:
                continue
            if self.tasks and self.only is None and time.perf_counter() > until:
                return
            limit = PassBudget(
                PROFILE_SHARE[settings.profile],
                None if max_passes is None else max_passes // len(chosen),
                None if budget_s is None else started + budget_s * number / len(chosen),
            )
            clock = StepTimer()
            (window,) = cut_windows(self.look.picture, [tile], self.engine.card.input)
            work = explain_window(
                self.engine,
                window,
                tile,
                settings=settings,
                target=self.target,
                against=self.against,
                limit=limit,
                clock=clock,
            )
            self.tasks.append(WindowTask(work, clock))
            yield self.tasks[-1]

    def _within_bound(self) -> list[Tile]:
        """Under a bound take the windows that score highest, and no more than the passes suffice for."""
        settings, wanted = self.settings, self.wanted
        most = len(wanted) if settings.max_windows is None else settings.max_windows
        if settings.max_passes is None and settings.budget_s is None and len(wanted) <= most:
            return wanted
        scores = self.look.scores[:, self.target]
        by_tile = {tile.index: float(score) for tile, score in zip(self.look.tiles, scores, strict=True)}
        first = sorted(wanted, key=lambda tile: -by_tile[tile.index])[:most]
        return first if settings.max_passes is None else first[: max(1, settings.max_passes // FEWEST_PASSES)]

    def finish(self, windows: list[WindowMaps]) -> Explanation:
        """Join the windows, and measure the faithfulness of the map."""
        notes = {
            "int8_scoring": any(task.in_8_bits for task in self.tasks),
            "windows_left_out": len(windows) < len(self.wanted),
        }
        results = sorted(windows, key=lambda window: window.explained.tile.index)
        results[0] = replace(results[0], notes=(*results[0].notes, *(note for note, true in notes.items() if true)))
        clock = StepTimer()
        for task in self.tasks:
            clock.add(task.clock)
        with clock.step("maps"):
            size = (self.look.picture.shape[0], self.look.picture.shape[1])
            explanation, order = _join(
                results, self.look, self.recorded, size=size, engine=self.engine, timings_ms=clock.spent_ms
            )
        if not self.settings.faithfulness:
            return explanation
        with clock.step("faithfulness"):
            measured = measure_faithfulness(
                self.engine, self.look.picture, explanation, order, target=self.target, against=self.against
            )
        return replace(explanation, faithfulness=measured)


def _class_index(card: ModelCard, label: str) -> int:
    if label not in card.labels:
        raise SettingsError(
            f"the model {card.name} has no label {label!r}", expected=f"one of {', '.join(card.labels)}"
        )
    return card.labels.index(label)


def _join(
    windows: Sequence[WindowMaps],
    look: WindowScores,
    settings: RecordedSettings,
    *,
    size: tuple[int, int],
    engine: Engine,
    timings_ms: dict[str, float],
) -> tuple[Explanation, PixelOrder]:
    """Join the explained windows on the picture."""
    spec = engine.card.input
    explained = tuple(window.explained for window in windows)
    placed = [window.tile for window in explained]

    fused = tiles.stitch([window.fusion.fused for window in windows], placed, size)
    order = PixelOrder(fused, [window.fusion for window in windows], placed)
    named = [end.tensor for end in engine.bundle.blocks if any(end.tensor in window.drawn for window in windows)]
    statuses = [window.explained.status for window in windows]
    status = next((s for s in (Status.EXPLAINED, Status.NOT_EXPLAINED) if s in statuses), Status.NO_EVIDENCE)
    explanation = Explanation(
        status=status,
        settings=settings,
        prediction=look.prediction,
        fused=fused,
        block_maps=BlockMapsOnPicture(named, explained, window_hw=(spec.height, spec.width), picture_hw=size),
        tiles=explained,
        regions=regions.find_regions(fused),
        forward_passes=sum(window.passes for window in windows),
        provider=engine.provider,
        timings_ms=timings_ms,
        embedding=tuple(np.mean([w.embedding for w in windows], axis=0).tolist()),
        rank_pixels=order.on_picture,
    )
    return replace(explanation, notes=_notes(windows, explanation, engine)), order


def _leaves_out(windows: Sequence[WindowMaps], fused: NDArray[np.float32]) -> bool:
    """Whether the windows cover less than the picture."""
    return sum(window.explained.tile.height_px * window.explained.tile.width_px for window in windows) < fused.size


def _notes(windows: Sequence[WindowMaps], explanation: Explanation, engine: Engine) -> tuple[str, ...]:
    """Return notes on what limits the map (method notes, section 9)."""
    explained = [window.explained for window in windows if window.explained.status is Status.EXPLAINED]
    coverage = explanation.coverage
    notes = {
        "only_the_middle": engine.card.input.fit is Fit.CENTER_CROP and _leaves_out(windows, explanation.fused),
        "ok_label_has_no_place": explanation.settings.target in engine.card.ok_labels,
        "scores_predicted": any(block.predicted_scores for window in windows for block in window.explained.blocks),
        "low_score_spread": any(tile.score_spread < _FLAT_SPREAD for tile in explained),
        "baseline_scores_class": any(window.explained.baseline_score > _BASELINE_SCORES for window in windows),
        "tiny_support": bool(explained) and coverage < _SUPPORT_SHARE[0],
        "wide_support": bool(explained) and coverage > _SUPPORT_SHARE[1],
    }
    from_methods = (note for window in windows for note in window.notes)
    return tuple(dict.fromkeys([*(note for note, true in notes.items() if true), *from_methods, *engine.notes]))
