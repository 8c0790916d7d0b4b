"""From one window to its maps: trace, choose masks, have them scored, weigh and fuse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain import methods, noisy_traces
from inspect_xai.explain.batching import ScoreCoroutine, StepTimer
from inspect_xai.explain.budget import PassBudget, confidence, overhead_passes, request_scores, score_within
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.maths import cams, sise
from inspect_xai.maths.embedding import embed
from inspect_xai.model.engine import Engine
from inspect_xai.records import BlockMap, CellGrid, Method, SelectionRule, Status, Tile, TileExplanation

_BLOCK_BY_BLOCK = (Method.SISE, Method.ADA_SISE, Method.GRAD_SISE)  # the others are run by methods.py
_NO_SCORE = 1e-7  # below this a probability is rounding: float32 softmax puts 1 in front of it


@dataclass(frozen=True, slots=True, eq=False)
class WindowMaps:
    """The explanation of one window, the three maps (h, w) that fusing and ranking need, and which blocks have one."""

    explained: TileExplanation
    fusion: sise.Fusion
    drawn: tuple[str, ...]
    passes: int
    notes: tuple[str, ...] = ()
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Selected:
    """A block end's masks as feature maps (n, h, w), and the smallest value (n,) of each upsampled."""

    block: BlockMap
    features: NDArray[np.float32]
    low: NDArray[np.float64]


def explain_window(
    engine: Engine,
    window: NDArray[np.float32],
    tile: Tile,
    *,
    settings: ExplainSettings,
    target: int,
    against: int,
    limit: PassBudget,
    clock: StepTimer,
) -> ScoreCoroutine[WindowMaps]:
    """Explain one window.

    Args:
        engine: Of the model.
        window: float32 (H, W, C) in pixel units.
        tile: Where it lies.
        settings: By which method, mu and baseline.
        target: Index of the class.
        against: Index of its rival, or `ALL_OTHERS`.
        limit: What it may cost.
        clock: Told what each step took.

    Raises:
        ExplanationError: If the network's numbers are not finite.
    """
    size = (window.shape[0], window.shape[1])
    if settings.method not in _BLOCK_BY_BLOCK:
        hidden = sise.baseline_picture(window, settings.baseline, mean=engine.mean_px)
        with clock.step(str(settings.method)):
            aim = methods.MethodInput(window, hidden, target, against, limit)
            found = yield from methods.find_evidence(engine, aim, method=settings.method)
            return _as_window(found, tile, size)
    fine = settings.method is Method.GRAD_SISE
    with clock.step("masks"):
        engine.open_scoring()
    with clock.step("trace"):
        noisy = noisy_traces.trace_noisy(engine, window, target=target, against=against) if fine else None
        trace = noisy.trace if noisy else engine.trace(window, target=target, against=against)
    with clock.step("baseline"):
        hidden = sise.baseline_picture(window, settings.baseline, mean=engine.mean_px)
        baseline_score = float(confidence(engine.predict(hidden[None]), target, against)[0])
    selected = [
        _select(name, trace.features[name], trace.alphas[name], size=size, settings=settings, grid=grid)
        for name, grid in engine.bundle.grids.items()
    ]
    stacks, grids = [each.features for each in selected], [each.block.grid for each in selected]

    def score(maps: NDArray[np.float32], grid: CellGrid | None) -> ScoreCoroutine[NDArray[np.float64]]:
        return request_scores(window, maps, baseline=hidden, target=target, against=against, grid=grid)

    limit = replace(limit, overhead=overhead_passes(settings.method))
    with clock.step("masks"):
        scores, scored = yield from score_within(stacks, score, limit, size=size, grids=grids)
    with clock.step("maps"):
        blocks, maps = _block_maps(selected, scores, scored, size)
        everything = np.concatenate(scores)
        status = Status.EXPLAINED if maps else Status.NO_EVIDENCE
        if len(everything) and everything.max() <= _NO_SCORE:
            status, maps = Status.NOT_EXPLAINED, {}
        if not maps:
            fusion = _empty(size)
        elif noisy:
            fusion = noisy_traces.fuse_products(engine, noisy, size, block_maps=list(maps.values()))
        else:
            fusion = sise.fuse(list(maps.values()))
    otsu = dict(zip(maps, fusion.otsu, strict=True)) if fusion.otsu else {}
    explained = TileExplanation(
        tile,
        status,
        tuple(float(p) for p in trace.probabilities),
        tuple(replace(block, otsu_threshold=otsu.get(block.tensor)) for block in blocks),
        baseline_score,
        float(np.ptp(everything)) if len(everything) else 0.0,
    )
    seen = tuple(embed(trace.features[next(reversed(trace.features))]).tolist())
    passes = limit.overhead + sum(int(known.sum()) for known in scored)
    return WindowMaps(explained, fusion, tuple(maps), passes, embedding=seen)


def _select(
    name: str,
    features: NDArray[np.float32],
    alphas: NDArray[np.float32],
    *,
    size: tuple[int, int],
    settings: ExplainSettings,
    grid: CellGrid | None,
) -> _Selected:
    """Choose a block's masks; the block map comes back with its counts and nothing else yet."""
    rule = SelectionRule.ADA if settings.method is Method.ADA_SISE else SelectionRule.MU
    selection = sise.select(alphas, rule=rule, mu=settings.mu)
    chosen = features[selection.kept]
    low, high = sise.extremes(chosen, size, grid=grid)
    varies = sise.with_contrast(low, high)
    varying = chosen[varies]
    note = "" if len(varying) else "all_constant" if len(chosen) else "no_positive_evidence"
    block = BlockMap(
        tensor=name,
        channels=len(features),
        positive_channels=selection.positive,
        kept_channels=len(varying),
        constant_channels=len(chosen) - len(varying),
        beta=selection.beta,
        threshold=selection.threshold,
        score_min=0.0,
        score_max=0.0,
        otsu_threshold=None,
        note=note,
        grid=grid,
    )
    return _Selected(block, varying, low[varies])


def _as_window(found: methods.MethodResult, tile: Tile, size: tuple[int, int]) -> WindowMaps:
    """Give a rival method's evidence the form that SISE's has, so that all maps are ranked and kept by one rule."""
    status = Status.EXPLAINED if found.signed.max() > 0 and np.ptp(found.signed) > 0 else Status.NO_EVIDENCE
    if len(found.scores) and found.scores.max() <= _NO_SCORE:
        status = Status.NOT_EXPLAINED
    fusion, maps = _empty(size), {}
    if status is Status.EXPLAINED:
        fusion = found.fusion or cams.as_fusion(found.signed, size, grid=found.grid)
        shown = {
            block.tensor: sise.normalized(block.sums, size, grid=block.grid)
            for block in found.blocks
            if block.sums is not None
        }
        maps = {name: shown_map for name, shown_map in shown.items() if shown_map is not None}
    spread = float(np.ptp(found.scores)) if len(found.scores) else 1.0  # nothing was masked, so nothing scored alike
    scores = tuple(float(p) for p in found.probabilities)
    explained = TileExplanation(tile, status, scores, found.blocks, baseline_score=0.0, score_spread=spread)
    return WindowMaps(explained, fusion, tuple(maps), found.passes, found.notes)


def _block_maps(
    selected: Sequence[_Selected],
    scores: Sequence[NDArray[np.float64]],
    scored: Sequence[NDArray[np.bool_]],
    size: tuple[int, int],
) -> tuple[list[BlockMap], dict[str, NDArray[np.float32]]]:
    """Weigh each block's masks; return the blocks and, of those that are not flat, the normalized maps (H, W)."""
    blocks: list[BlockMap] = []
    maps: dict[str, NDArray[np.float32]] = {}
    for chosen, said, known in zip(selected, scores, scored, strict=True):
        block = chosen.block
        if len(chosen.features):
            sums = sise.weighted_sums(chosen.features, said, size=size, low=chosen.low, grid=block.grid)
            normalized = sise.normalized(sums, size, grid=block.grid)
            block = replace(
                block,
                sums=sums,
                score_min=float(said.min()),
                score_max=float(said.max()),
                predicted_scores=int((~known).sum()),
                note="flat" if normalized is None else "",
            )
            if normalized is not None:
                maps[block.tensor] = normalized
        blocks.append(block)
    return blocks, maps


def _empty(size: tuple[int, int]) -> sise.Fusion:
    """Stand in for a map where there is no evidence: zeros, never normalized noise (method notes 2.6)."""
    nothing = np.zeros(size, np.float32)
    return sise.Fusion(nothing, nothing, nothing, ())
