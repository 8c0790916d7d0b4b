"""Several windows in step: each says which masks it wants scored, and those that wait share the network's runs.

What a window's explanation does between two questions to the network is its own; so it is written as a generator that
yields masks and is sent what the network says of them:

    window 1   trace, select -> masks of block 1 .. weigh -> masks of block 2 .. fuse
    window 2   trace, select -> masks of block 1 .. weigh -> masks of block 2 .. fuse
                                    one question                one question
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
    """What a window wants scored.

    Attributes:
        window: float32 (H, W, C) in pixel units.
        maps: (n, h, w) float32, at least one.
        baseline: (H, W, C), what stands where a map is low.
        grid: Where the maps' cells lie; None: from edge to edge of the window.
    """

    window: NDArray[np.float32]
    maps: NDArray[np.float32]
    baseline: NDArray[np.float32]
    grid: CellGrid | None = None


ScoreCoroutine: TypeAlias = Generator[ScoreRequest, MaskScores, T]
"""Work that asks for scores on the way to a T."""


@dataclass(slots=True)
class StepTimer:
    """Adds up milliseconds by step, less what passes while other windows are at work."""

    spent_ms: dict[str, float] = field(default_factory=dict)
    elsewhere_s: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what the block takes towards a step."""
        start = time.perf_counter() - self.elsewhere_s
        yield
        took_s = time.perf_counter() - self.elsewhere_s - start
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + took_s * 1e3

    def add(self, other: "StepTimer") -> None:
        """Take over what another clock counted."""
        for name, spent_ms in other.spent_ms.items():
            self.spent_ms[name] = self.spent_ms.get(name, 0.0) + spent_ms


@dataclass(slots=True, eq=False)
class WindowTask(Generic[T]):
    """A window's work, the clock it is timed by, and whether any of its masks was scored in 8 bits."""

    work: ScoreCoroutine[T]
    clock: StepTimer = field(default_factory=StepTimer)
    in_8_bits: bool = False


def run_together(engine: Engine, tasks: Iterable[WindowTask[T]], *, at_once: int | None = None) -> list[T]:
    """Bring tasks to their ends, so many at a time in step.

    Args:
        engine: Scores the masks.
        tasks: AnswerAccepted one by one as they are begun.
        at_once: How many; default: as many as the engine's runs have room for.

    Returns:
        What they came to, in order.

    Raises:
        InspectXaiError: The first failure of any task; the others are then not brought to their ends.
    """
    left = iter(tasks)
    found: list[T] = []
    while group := list(islice(left, at_once or engine.windows_at_once)):
        found += _in_step(engine, group)
    return found


def _in_step(engine: Engine, tasks: list[WindowTask[T]]) -> list[T]:
    done: dict[int, T] = {}
    asked: dict[int, ScoreRequest] = {}
    since: dict[int, float] = {}

    def go_on(number: int, said: MaskScores | None) -> None:
        work = tasks[number].work
        try:
            asked[number] = next(work) if said is None else work.send(said)
        except StopIteration as end:
            done[number] = end.value
        since[number] = time.perf_counter()

    for number in range(len(tasks)):
        go_on(number, None)
    while asked:
        # Shallow blocks first, whose maps are the largest: who is behind catches up and shares the next runs.
        first = max(asked.values(), key=lambda masks: (masks.maps[0].size, masks.maps.shape[1:], str(masks.grid)))
        ready = {number: asked.pop(number) for number in sorted(asked) if _are_alike(asked[number], first)}
        began = time.perf_counter()
        answers = _scored(engine, ready)
        each_s = (time.perf_counter() - began) / sum(len(masks.maps) for masks in ready.values())
        for number, said in answers.items():
            away_s = time.perf_counter() - since[number]
            tasks[number].clock.elsewhere_s += away_s - each_s * len(said.span)
            tasks[number].in_8_bits |= said.in_8_bits
            go_on(number, said)
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
    said = engine.score_together(
        np.stack([masks.window for masks in several]),
        np.concatenate([masks.maps for masks in several]),
        baselines=np.stack([masks.baseline for masks in several]),
        image=np.repeat(np.arange(len(several)), counts),
        grid=several[0].grid,
    )
    ends = np.cumsum(counts)[:-1]
    parts = (np.split(array, ends) for array in (said.probabilities, said.minimum, said.span))
    return {
        number: MaskScores(probabilities, minimum, span, said.in_8_bits)
        for number, probabilities, minimum, span in zip(ready, *parts, strict=True)
    }
