"""Product-CAM and Grad-SISE on the engine: a window and its noisy copies traced in one run, and their maps fused."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import cams, grad_sise, sise
from inspect_xai.model.engine import Engine, Trace


@dataclass(frozen=True, slots=True, eq=False)
class NoisyTraces:
    """A window's trace, and what it and those of its noisy copies show on the average.

    Attributes:
        trace: Of the window itself.
        local: Block end by tensor name, (h, w): the positive part of LayerCAM, averaged.
        grad_cam: (h, w), signed: Grad-CAM of the deepest block end, averaged.
    """

    trace: Trace
    local: dict[str, NDArray[np.float32]]
    grad_cam: NDArray[np.float32]


def trace_noisy(engine: Engine, window: NDArray[np.float32], *, target: int, against: int) -> NoisyTraces:
    """Trace a window and its noisy copies, and average what Product-CAM and Grad-SISE take from them.

    Args:
        engine: Of the model.
        window: float32 (H, W, C) in pixel units.
        target: Index of the class.
        against: Index of its rival, or `ALL_OTHERS`.

    Raises:
        ExplanationError: If the network has no gradient graph, or its numbers are not finite.
    """
    copies = grad_sise.noisy_copies(window)
    traces = engine.trace_together(copies, target=target, against=against, gradients=True)
    first = next(traces)
    local, coarse = _cams(first)
    for trace in traces:
        more, deep = _cams(trace)
        coarse += deep
        for name, one in more.items():
            local[name] += one
    share = np.float32(1 / len(copies))
    return NoisyTraces(first, {name: share * one for name, one in local.items()}, share * coarse)


def fuse_products(
    engine: Engine, found: NoisyTraces, size: tuple[int, int], *, block_maps: Sequence[NDArray[np.float32]] = ()
) -> sise.Fusion:
    """Multiply the averaged gradient maps, and SISE's block maps (H, W) where there are any, into a window's map."""
    grids, deepest = engine.bundle.grids, next(reversed(found.local))
    maps = [
        grad_sise.gradient_map(local, size, feeds_stride=name != deepest, grid=grids[name])
        for name, local in found.local.items()
    ]
    factors = [*block_maps, *(one for one in maps if one is not None)]
    return grad_sise.fuse(factors, found.grad_cam, size, grid=grids[deepest])


def _cams(trace: Trace) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    local = {
        name: np.maximum(cams.layer_cam(features, trace.gradients[name]), 0)
        for name, features in trace.features.items()
    }
    deepest = next(reversed(trace.features))
    return local, cams.grad_cam(trace.features[deepest], trace.gradients[deepest])
