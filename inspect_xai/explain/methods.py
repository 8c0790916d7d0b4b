"""The methods that an audit compares SISE with, run on the engine: one window in, its signed map out.

| method | looks at | cost beside the trace |
| --- | --- | --- |
| grad-cam, grad-cam++, hirescam | deepest block end and its gradient | none |
| layer-cam | all block ends and their gradients | none |
| product-cam | all block ends and their gradients, of the window and noisy copies | a trace for each copy |
| score-cam | the window seen through each feature map of the deepest block end | a pass for each |
| recipro-cam | the layers behind the deepest block end | a pass through those layers for each place |
| rise | the window through random masks, until the map settles | up to 4000 passes |
| occlusion | the window with a patch hidden, place by place | about 230 passes |
| random, center | nothing | none; they show what a number is worth |
"""

import time
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain import noisy_traces
from inspect_xai.explain.batching import ScoreCoroutine
from inspect_xai.explain.budget import OVERHEAD_PASSES, PassBudget, confidence, request_scores, score_within
from inspect_xai.explain.settings import FEWEST_PASSES
from inspect_xai.maths import cams, metrics, sise
from inspect_xai.maths.grad_sise import NOISY_COPIES
from inspect_xai.model.engine import Engine, Trace
from inspect_xai.records import BlockMap, CellGrid, Method

RISE_MASKS = 4000
"""Most masks of RISE; it stops before where its map has settled (`rivals.RISE_NOISE`)."""

_RISE_SEED = 0
_RISE_FEWEST = 256  # masks before RISE may stop
_PATCH_SHARE = 1 / 8  # side of occlusion's patch, as a share of the window's shorter side; steps are half a patch


@dataclass(frozen=True, slots=True, eq=False)
class MethodInput:
    """What is asked of one window.

    Attributes:
        window: float32 (H, W, C) in pixel units.
        hidden: (H, W, C), what stands where something is hidden.
        target: Index of the class.
        against: Index of a rival class, or `ALL_OTHERS`.
        limit: What it may cost.
    """

    window: NDArray[np.float32]
    hidden: NDArray[np.float32]
    target: int
    against: int
    limit: PassBudget

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the window."""
        return self.window.shape[0], self.window.shape[1]

    def scores(self, maps: NDArray[np.float32], grid: CellGrid | None = None) -> ScoreCoroutine[NDArray[np.float64]]:
        """Ask for the scores (n,) of the window seen through maps (n, h, w) on a grid."""
        return request_scores(
            self.window, maps, baseline=self.hidden, target=self.target, against=self.against, grid=grid
        )


@dataclass(frozen=True, slots=True, eq=False)
class MethodResult:
    """What a method found in one window.

    Attributes:
        signed: (h, w) at any resolution; negative where something argues against the class.
        probabilities: (K,) of the window as it is.
        passes: Forward passes through the whole network.
        scores: (n,) of the masked windows; empty for methods that mask nothing.
        blocks: The block ends it rests on, each with its map where it has one of its own.
        notes: What a reader must know, as codes.
        grid: Where the cells of `signed` lie; None: from edge to edge.
        fusion: The window's map where it is finer than `signed`.
    """

    signed: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    passes: int
    scores: NDArray[np.float64]
    blocks: tuple[BlockMap, ...] = ()
    notes: tuple[str, ...] = ()
    grid: CellGrid | None = None
    fusion: sise.Fusion | None = None


def find_evidence(engine: Engine, aim: MethodInput, *, method: Method) -> ScoreCoroutine[MethodResult]:
    """Run one of the rival methods on one window.

    Args:
        engine: Of the model.
        aim: The window and what is asked.
        method: Any but SISE and its variants.

    Raises:
        UnsupportedModelError: If the network does not allow the method.
        ExplanationError: If the network's numbers are not finite.
    """
    match method:
        case Method.GRAD_CAM | Method.GRAD_CAM_PLUS_PLUS | Method.HIRES_CAM:
            return _from_gradients(engine, aim, method)
        case Method.LAYER_CAM:
            return _layer_cam(engine, aim)
        case Method.PRODUCT_CAM:
            return _product_cam(engine, aim)
        case Method.SCORE_CAM:
            return (yield from _score_cam(engine, aim))
        case Method.RECIPRO_CAM:
            return _recipro_cam(engine, aim)
        case Method.RISE:
            return (yield from _rise(engine, aim))
        case Method.OCCLUSION:
            return (yield from _occlusion(engine, aim))
        case Method.RANDOM | Method.CENTER:
            return _chance(engine, aim, method)
        case Method.SISE | Method.ADA_SISE | Method.GRAD_SISE:
            raise ValueError(f"{method} is explained block by block, in explain.py")


def _from_gradients(engine: Engine, aim: MethodInput, method: Method) -> MethodResult:
    trace = engine.trace(aim.window, target=aim.target, against=aim.against, gradients=True)
    name = engine.bundle.blocks[-1].tensor
    combine = {
        Method.GRAD_CAM: cams.grad_cam,
        Method.GRAD_CAM_PLUS_PLUS: cams.grad_cam_plus_plus,
        Method.HIRES_CAM: cams.hires_cam,
    }[method]
    signed = combine(trace.features[name], trace.gradients[name])
    block = _block(engine, trace, name, signed)
    return MethodResult(signed, trace.probabilities, 1, np.zeros(0), (block,), grid=block.grid)


def _layer_cam(engine: Engine, aim: MethodInput) -> MethodResult:
    trace = engine.trace(aim.window, target=aim.target, against=aim.against, gradients=True)
    maps = {name: cams.layer_cam(trace.features[name], trace.gradients[name]) for name in trace.features}
    grids = engine.bundle.grids
    fused = cams.fuse_layer_cams(list(maps.values()), aim.size, grids=[grids[name] for name in maps])
    blocks = tuple(_block(engine, trace, name, found) for name, found in maps.items())
    return MethodResult(fused, trace.probabilities, 1, np.zeros(0), blocks, ("stride_grid",))


def _product_cam(engine: Engine, aim: MethodInput) -> MethodResult:
    noisy = noisy_traces.trace_noisy(engine, aim.window, target=aim.target, against=aim.against)
    blocks = tuple(_block(engine, noisy.trace, name, local) for name, local in noisy.local.items())
    fusion = noisy_traces.fuse_products(engine, noisy, aim.size)
    passes = 1 + NOISY_COPIES
    return MethodResult(noisy.grad_cam, noisy.trace.probabilities, passes, np.zeros(0), blocks, fusion=fusion)


def _score_cam(engine: Engine, aim: MethodInput) -> ScoreCoroutine[MethodResult]:
    trace = engine.trace(aim.window, target=aim.target, against=aim.against)
    name = engine.bundle.blocks[-1].tensor
    features, grid = trace.features[name], engine.bundle.grids[name]
    varying = features[sise.with_contrast(*sise.extremes(features, aim.size, grid=grid))]
    if not len(varying):
        nothing = np.zeros(features.shape[1:], np.float32)
        return MethodResult(nothing, trace.probabilities, 1, np.zeros(0), (_block(engine, trace, name, nothing),))
    (scores,), (scored,) = yield from score_within([varying], aim.scores, aim.limit, size=aim.size, grids=[grid])
    signed = cams.score_cam(varying, scores)
    notes = () if scored.all() else ("scores_predicted",)
    blocks = (_block(engine, trace, name, signed),)
    return MethodResult(signed, trace.probabilities, 1 + int(scored.sum()), scores, blocks, notes, grid)


def _recipro_cam(engine: Engine, aim: MethodInput) -> MethodResult:
    trace = engine.trace(aim.window, target=aim.target, against=aim.against)
    name = engine.bundle.blocks[-1].tensor
    features = trace.features[name]
    places = (features.shape[1], features.shape[2])
    scores = np.concatenate(
        [
            confidence(engine.score_features(chunk), aim.target, aim.against)
            for chunk in cams.recipro_features(features, chunk=engine.bucket)
        ]
    )
    signed = cams.recipro_cam(scores, places)
    block = _block(engine, trace, name, signed)
    return MethodResult(signed, trace.probabilities, 1, scores, (block,), (f"head_passes_{len(scores)}",), block.grid)


def _rise(engine: Engine, aim: MethodInput) -> ScoreCoroutine[MethodResult]:
    estimate = cams.RiseEstimate.empty(aim.size)
    scores: list[NDArray[np.float64]] = []
    count = aim.limit.masks(RISE_MASKS)
    for masks in cams.rise_masks(aim.size, seed=_RISE_SEED, count=count, chunk=max(16, engine.bucket)):
        scores.append((yield from aim.scores(masks)))
        estimate = estimate.add(masks, scores[-1])
        if aim.limit.deadline is not None and time.perf_counter() > aim.limit.deadline:
            break
        if estimate.count >= _RISE_FEWEST and estimate.noise() < cams.RISE_NOISE:
            break
    notes = () if estimate.noise() < cams.RISE_NOISE else ("not_settled",)
    return MethodResult(
        estimate.signed(), engine.predict(aim.window[None])[0], 1 + estimate.count, np.concatenate(scores), notes=notes
    )


def _occlusion(engine: Engine, aim: MethodInput) -> ScoreCoroutine[MethodResult]:
    began = time.perf_counter()
    probabilities = engine.predict(aim.window[None])[0]
    each_s = time.perf_counter() - began
    patch = max(1, round(min(aim.size) * _PATCH_SHARE))
    stride = max(1, patch // 2)
    wanted = len(cams.occlusion_windows(aim.size, patch=patch, stride=stride))
    allowed = aim.limit.masks(wanted)
    if aim.limit.deadline is not None:
        in_time = int((aim.limit.deadline - time.perf_counter()) / each_s)
        allowed = min(allowed, max(FEWEST_PASSES - OVERHEAD_PASSES, in_time))
    while len(cams.occlusion_windows(aim.size, patch=patch, stride=stride)) > allowed:
        stride += 1  # first fewer overlaps, then larger patches: never a gap
        patch = max(patch, stride)
    masks = cams.occlusion_masks(aim.size, patch=patch, stride=stride, chunk=engine.bucket)
    parts = []
    for chunk in masks:
        parts.append((yield from aim.scores(chunk)))  # noqa: PERF401  a comprehension cannot yield
    scores = np.concatenate(parts)
    full = float(confidence(probabilities[None], aim.target, aim.against)[0])
    signed = cams.occlusion_map(scores, aim.size, full=full, patch=patch, stride=stride)
    return MethodResult(signed, probabilities, 1 + len(scores), scores)


def _chance(engine: Engine, aim: MethodInput, method: Method) -> MethodResult:
    """Draw a map that knows nothing; random ones differ from window to window, yet are the same in every run."""
    seed = zlib.crc32(np.ascontiguousarray(aim.window).tobytes())
    drawn = metrics.random_map(aim.size, seed) if method is Method.RANDOM else metrics.center_map(aim.size)
    return MethodResult(drawn, engine.predict(aim.window[None])[0], 1, np.zeros(0), notes=("knows_nothing",))


def _block(engine: Engine, trace: Trace, name: str, signed: NDArray[np.float32]) -> BlockMap:
    """Say of a block end what a record says of it; its `sums` are the evidence for the class."""
    alphas, evidence = trace.alphas[name], np.maximum(signed, 0)
    return BlockMap(
        tensor=name,
        channels=len(alphas),
        positive_channels=int((alphas > 0).sum()),
        kept_channels=len(alphas),
        constant_channels=0,
        beta=float(alphas.max()),
        threshold=0.0,
        score_min=0.0,
        score_max=0.0,
        otsu_threshold=None,
        sums=evidence,
        note="" if np.ptp(evidence) > 0 else "flat",
        grid=engine.bundle.grids[name],
    )
