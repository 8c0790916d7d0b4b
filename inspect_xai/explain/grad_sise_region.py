"""Grad-SISE's last step: ask the network which of several regions suffices for the class, and fuse within that one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain.budget import PassBudget, confidence
from inspect_xai.explain.settings import FEWEST_PASSES
from inspect_xai.maths import cams, grad_sise, sise
from inspect_xai.model.engine import Engine, Trace
from inspect_xai.records import Baseline

REGIONS = ("product", "hirescam", "deepest_block", "layer_cam")
"""What the regions are filled up by; the one chosen is in the explanation's notes."""

PASSES = len(REGIONS) * len(Baseline)
"""What asking costs: every region alone, under every fill."""


@dataclass(frozen=True, slots=True, eq=False)
class RegionChoice:
    """The fused map, what finding its region cost, and which one it was, as a note."""

    fusion: sise.Fusion
    passes: int
    note: str


def reserve(limit: PassBudget, total: int) -> tuple[PassBudget, bool]:
    """Set the passes that asking takes aside from what a window may cost.

    Args:
        limit: What the window may cost.
        total: Masks it has.

    Returns:
        What is left for masks, and whether the network is asked at all: not where that would leave masks too few.
    """
    room = limit.room(total)
    if room is None:
        return limit, True
    if room < FEWEST_PASSES + PASSES:
        return limit, False
    return PassBudget(1.0, room - PASSES, limit.deadline), True


def fuse_sufficient(
    engine: Engine,
    window: NDArray[np.float32],
    trace: Trace,
    block_maps: Sequence[NDArray[np.float32]],
    *,
    target: int,
    against: int,
    ask: bool,
) -> RegionChoice:
    """Fuse block maps and gradients, and choose the region.

    Args:
        engine: Of the model.
        window: float32 (H, W, C) in pixel units.
        trace: Of the window, with gradients.
        block_maps: (H, W) each in [0, 1], shallow to deep, at least one.
        target: Index of the class.
        against: Index of its rival, or `ALL_OTHERS`.
        ask: Whether the network is asked; else the region is that of HiResCAM.
    """
    size = (window.shape[0], window.shape[1])
    names, grids = list(trace.features), engine.bundle.grids
    gradient_maps = [
        grad_sise.gradient_map(
            trace.features[name], trace.gradients[name], size, feeds_stride=name != names[-1], grid=grids[name]
        )
        for name in names
    ]
    product = grad_sise.multiply([*block_maps, *(found for found in gradient_maps if found is not None)])
    deep = names[-1]
    layer_cams = [cams.layer_cam(trace.features[name], trace.gradients[name]) for name in names]
    coarse = [
        sise.upsample(cams.hires_cam(trace.features[deep], trace.gradients[deep]), size, grid=grids[deep]),
        block_maps[-1],
        cams.fuse_layer_cams(layer_cams, size, grids=[grids[name] for name in names]),
    ]
    regions = grad_sise.regions(product, coarse)
    chosen = REGIONS.index("hirescam")
    if ask:
        chosen = _most_sufficient(engine, window, regions, target=target, against=against)
    return RegionChoice(
        grad_sise.fuse_within(product, regions[chosen]), PASSES if ask else 0, f"region_{REGIONS[chosen]}"
    )


def _most_sufficient(
    engine: Engine, window: NDArray[np.float32], regions: Sequence[NDArray[np.bool_]], *, target: int, against: int
) -> int:
    """Find the region which, shown alone, leaves most of the score, on the average over the fills; ties: the first."""
    fills = [sise.baseline_picture(window, fill, mean=engine.mean_px) for fill in Baseline]
    shown = [np.where(region[..., np.newaxis], window, fill) for region in regions for fill in fills]
    left = confidence(engine.predict(np.stack(shown)), target, against).reshape(len(regions), len(fills))
    return int(left.mean(axis=1).argmax())
