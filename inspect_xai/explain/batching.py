"""Batching of several windows: each requests scores of masks, and requests of one size share the network's runs.

The explanation of a window is a generator that yields requests and is sent the scores:

    window 1   trace, select -> masks of block 1 .. weigh -> masks of block 2 .. fuse
    window 2   trace, select -> masks of block 1 .. weigh -> masks of block 2 .. fuse
                                    shared runs                 shared runs
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspect_xai.model.engine import Engine, MaskScores
from inspect_xai.records import CellGrid

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Masks of a window to be scored.

    Attributes:
        window: float32 (H, W, C) in pixel units.
        maps: (n, h, w) float32, at least one.
        baseline: (H, W, C), shown where a map is low.
        grid: Where the maps' cells lie; None: from edge to edge of the window.
    """

    window: NDArray[np.float32]
    maps: NDArray[np.float32]
    baseline: NDArray[np.float32]
    grid: CellGrid | None = None


ScoreCoroutine: TypeAlias = Generator[ScoreRequest, MaskScores, T]
"""Work that requests scores and returns a T."""


@dataclass(slots=True)
class StepTimer:
    """Adds up milliseconds by step, without the time spent on other windows."""

    spent_ms: dict[str, float] = field(default_factory=dict)
    elsewhere_s: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a step."""
        start = time.perf_counter() - self.elsewhere_s
        yield
        took_s = time.perf_counter() - self.elsewhere_s - start
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + took_s * 1e3

    def add(self, other: "StepTimer") -> None:
        """Add the times of another timer."""
        for name, spent_ms in other.spent_ms.items():
            self.spent_ms[name] = self.spent_ms.get(name, 0.0) + spent_ms


@dataclass(slots=True, eq=False)
class WindowTask(Generic[T]):
    """A window's work, its timer, and whether any of its masks was scored in 8 bits."""

    work: ScoreCoroutine[T]
    clock: StepTimer = field(default_factory=StepTimer)
    in_8_bits: bool = False


def run_together(engine: Engine, tasks: Iterable[WindowTask[T]], *, at_once: int | None = None) -> list[T]:
    """Run tasks to their ends, a number of them at a time.

    Args:
        engine: Scores the masks.
        tasks: Taken from the iterable when they are begun.
        at_once: How many; default: as many as the engine's runs have room for.

    Returns:
        Their results, in order.

    Raises:
        InspectXaiError: The first failure of any task; the others are then abandoned.
    """
    left = iter(tasks)
    results: list[T] = []
    while group := list(islice(left, at_once or engine.windows_at_once)):
        results += _in_step(engine, group)
    return results


def _in_step(engine: Engine, tasks: list[WindowTask[T]]) -> list[T]:
    done: dict[int, T] = {}
    asked: dict[int, ScoreRequest] = {}
    since: dict[int, float] = {}

    def resume(number: int, scores: MaskScores | None) -> None:
        work = tasks[number].work
        try:
            asked[number] = next(work) if scores is None else work.send(scores)
        except StopIteration as end:
            done[number] = end.value
        since[number] = time.perf_counter()

    for number in range(len(tasks)):
        resume(number, None)
    while asked:
        # Shallow blocks first, whose maps are the largest: windows that are behind catch up and share the next runs.
        first = max(asked.values(), key=lambda masks: (masks.maps[0].size, masks.maps.shape[1:], str(masks.grid)))
        ready = {number: asked.pop(number) for number in sorted(asked) if _are_alike(asked[number], first)}
        began = time.perf_counter()
        answers = _scored(engine, ready)
        each_s = (time.perf_counter() - began) / sum(len(masks.maps) for masks in ready.values())
        for number, scores in answers.items():
            away_s = time.perf_counter() - since[number]
            tasks[number].clock.elsewhere_s += away_s - each_s * len(scores.span)
            tasks[number].in_8_bits |= scores.in_8_bits
            resume(number, scores)
    return [done[number] for number in range(len(tasks))]


def _are_alike(one: ScoreRequest, other: ScoreRequest) -> bool:
    """Tell whether two windows' maps have their cells in the same places."""
    return one.maps.shape[1:] == other.maps.shape[1:] and one.grid == other.grid


def _scored(engine: Engine, ready: Mapping[int, ScoreRequest]) -> dict[int, MaskScores]:
    """Score masks of one resolution, of several windows in shared runs."""
    if len(ready) == 1:
        ((number, masks),) = ready.items()
        return {number: engine.score_masks(masks.window, masks.maps, baseline=masks.baseline, grid=masks.grid)}
    several = list(ready.values())
    counts = [len(masks.maps) for masks in several]
    scores = engine.score_together(
        np.stack([masks.window for masks in several]),
        np.concatenate([masks.maps for masks in several]),
        baselines=np.stack([masks.baseline for masks in several]),
        image=np.repeat(np.arange(len(several)), counts),
        grid=several[0].grid,
    )
    ends = np.cumsum(counts)[:-1]
    parts = (np.split(array, ends) for array in (scores.probabilities, scores.minimum, scores.span))
    return {
        number: MaskScores(probabilities, minimum, span, scores.in_8_bits)
        for number, probabilities, minimum, span in zip(ready, *parts, strict=True)
    }
