"""Budget of a window's masks, and their scores within it: by a forward pass each, or predicted from others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain.batching import ScoreCoroutine, ScoreRequest
from inspect_xai.explain.settings import FEWEST_PASSES
from inspect_xai.maths import surrogate
from inspect_xai.maths.grad_sise import NOISY_COPIES
from inspect_xai.model.engine import ALL_OTHERS
from inspect_xai.records import CellGrid, Method

OVERHEAD_PASSES = 2  # a trace and the bare baseline
_ROUND = 16  # masks between two looks at the clock


def overhead_passes(method: Method) -> int:
    """Return the passes that a window takes beside those of its masks."""
    return OVERHEAD_PASSES + (NOISY_COPIES if method is Method.GRAD_SISE else 0)


@dataclass(frozen=True, slots=True)
class PassBudget:
    """Bounds of one window: a share of the passes that all masks take, a number of passes, and a deadline.

    `overhead` counts the passes beside those of the masks.
    """

    share: float
    passes: int | None
    deadline: float | None
    overhead: int = OVERHEAD_PASSES

    def masks(self, total: int) -> int:
        """Return how many of `total` masks may be scored."""
        shared = total if self.share == 1 else int(self.share * (total + self.overhead)) - self.overhead
        bound = total if self.passes is None else self.passes - self.overhead
        return max(min(total, shared, bound), min(total, FEWEST_PASSES - self.overhead))


def score_within(
    stacks: Sequence[NDArray[np.float32]],
    score: Callable[[NDArray[np.float32], CellGrid | None], ScoreCoroutine[NDArray[np.float64]]],
    limit: PassBudget,
    *,
    size: tuple[int, int],
    grids: Sequence[CellGrid | None],
) -> ScoreCoroutine[tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]]:
    """Score masks as far as the limit allows, and predict the scores of the others.

    Args:
        stacks: Masks of each block as feature maps (n, h, w).
        score: Maps (n, h, w) of one resolution and their grid -> scores (n,), as `request_scores` does.
        limit: The bounds.
        size: (H, W) of the window.
        grids: Per block, where its cells lie; None: from edge to edge.

    Returns:
        Per block the scores (n,), and which of them (n,) come from a forward pass.
    """
    counts = [len(features) for features in stacks]
    ends = np.cumsum(counts)[:-1]
    total, count = sum(counts), limit.masks(sum(counts))
    if count == total and limit.deadline is None:
        exact = []
        for features, grid in zip(stacks, grids, strict=True):
            exact.append((yield from score(features, grid)) if len(features) else np.zeros(0))
        return exact, [np.ones(n, bool) for n in counts]
    shapes = [(features.shape[1], features.shape[2]) for features in stacks]
    cells = surrogate.grid_of(shapes)
    masks = np.concatenate(
        [
            surrogate.describe_masks(features, cells=cells, size=size, grid=grid)
            for features, grid in zip(stacks, grids, strict=True)
        ]
    )
    blocks = np.repeat(np.arange(len(stacks)), counts)
    detail = np.repeat([surrogate.unseen_detail(shape, cells=cells) for shape in shapes], counts)
    order = surrogate.order_masks(masks, blocks, detail=detail, count=count)
    scores, known = np.zeros(total), np.zeros(total, bool)
    step = len(order) if limit.deadline is None else _ROUND
    for start in range(0, len(order), step or 1):
        began = time.perf_counter()
        chunk = order[start : start + step]
        for block in np.unique(blocks[chunk]):
            members = np.sort(chunk[blocks[chunk] == block])
            scores[members] = yield from score(stacks[block][members - int(sum(counts[:block]))], grids[block])
        known[chunk] = True
        now = time.perf_counter()
        if limit.deadline is not None and now + (now - began) > limit.deadline:
            break
    if not known.all():
        scored = np.flatnonzero(known)
        scores = surrogate.predict_scores(masks, scored, scores[scored], detail=detail)
    return np.split(scores, ends), np.split(known, ends)


def request_scores(
    window: NDArray[np.float32],
    maps: NDArray[np.float32],
    *,
    baseline: NDArray[np.float32],
    target: int,
    against: int,
    grid: CellGrid | None = None,
) -> ScoreCoroutine[NDArray[np.float64]]:
    """Request the scores (n,) of the target class of a window (H, W, C) seen through maps (n, h, w) on a grid."""
    answer = yield ScoreRequest(window, maps, baseline, grid)
    return confidence(answer.probabilities, target, against)


def confidence(probabilities: NDArray[np.float32], target: int, against: int) -> NDArray[np.float64]:
    """Return the score of the target class (n,): its probability, or its share of the pair in a contrast.

    Source: method notes 2.3 and 8 (contrastive target: p_c / (p_c + p_r)).
    """
    p = np.asarray(probabilities, np.float64)
    if against == ALL_OTHERS:
        return np.asarray(p[:, target])
    pair = p[:, target] + p[:, against]
    return np.asarray(np.divide(p[:, target], pair, out=np.full(len(p), 0.5), where=pair > 0))
