"""SISE in plain torch, written from the equations: autograd for alphas, every mask materialized, no shortcuts.

Nothing here is shared with the product, so that the two can only agree by both being right.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class ReferenceMap:
    """The reference's answer: per block the alphas (C,) and map (H, W) or None, and the fused map (H, W)."""

    alphas: list[NDArray[np.float64]]
    blocks: list[NDArray[np.float64] | None]
    fused: NDArray[np.float64]


@dataclass
class Lattice:
    """Where the cells of a block end lie: cell (i, j) at first + step * (i, j), in pixels from the first center."""

    first: tuple[float, float]
    step: tuple[float, float]


def measured_lattices(stages: Sequence[nn.Module], shape: tuple[int, int, int]) -> list[Lattice] | None:
    """Let a chain of stages (convolution, norm, ReLU, pool, concatenation) say where the cells of each one's end lie.

    In a copy that only averages, a picture of row numbers makes of every cell the mean row of what it sees. It is read
    off in the middle of a picture four times as large, where no padding takes part. None, for maps that are stretched
    from edge to edge: the layers are padded, and every block end has a cell for each whole step of the picture.
    """
    layers = [layer for stage in stages for layer in stage.modules()]
    if not any(map(_is_unpadded, layers)):
        return None
    averaging = [_averaging(copy.deepcopy(stage).double()) for stage in stages]
    large = torch.ones(1, shape[0], 4 * shape[1], 4 * shape[2], dtype=torch.float64)
    rows, columns = (torch.arange(side, dtype=torch.float64) + 1 for side in large.shape[2:])  # positive, for ReLU
    ones, down, across = (_ends(averaging, seen) for seen in (large, large * rows[:, None], large * columns))
    lattices = []
    for one, row, column in zip(ones, down, across, strict=True):
        i, j = one.shape[2] // 2, one.shape[3] // 2
        at = [[(said / one)[0, 0, i + k, j + k].item() - 1 for k in (0, 1)] for said in (row, column)]
        step = [after - before for before, after in at]
        lattices.append(
            Lattice((at[0][0] - i * step[0], at[1][0] - j * step[1]), (step[0], step[1]))  # counted back to cell 0
        )
    ends = _ends(stages, torch.zeros(1, *shape, dtype=next(stages[0].parameters()).dtype))
    fewer = [
        cells < int(side / step + 1e-6)
        for end, lattice in zip(ends, lattices, strict=True)
        for cells, side, step in zip(end.shape[2:], shape[1:], lattice.step, strict=True)
    ]
    return lattices if any(fewer) else None


def _is_unpadded(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    kernel, stride, padding = (
        number if isinstance(number, tuple) else (number, number)
        for number in (layer.kernel_size, layer.stride, layer.padding)
    )
    return any(pad == 0 and size > step for size, step, pad in zip(kernel, stride, padding, strict=True))


def _averaging(stage: nn.Module) -> nn.Module:
    """Make a stage average what it sees, in place: equal weights, no bias, pools that take the mean."""
    for name, layer in list(stage.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
        if isinstance(layer, nn.MaxPool2d):
            pool = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
            stage.set_submodule(name, pool)
    return stage


def _ends(stages: Sequence[nn.Module], seen: Tensor) -> list[Tensor]:
    ends = []
    for stage in stages:
        seen = stage(seen)
        ends.append(seen)
    return ends


def block_outputs(module: nn.Module, layers: Sequence[str], pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Run a network and return the outputs of the named layers, in that order, and the logits."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out))
        for name in layers
    ]
    logits = module(pixels)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in layers], logits


def margin(logits: Tensor, target: int, against: int | None, activation: str) -> Tensor:
    """Log-odds of the target class (1, K) -> (1,): against all others, against one, or of its own sigmoid."""
    if activation == "sigmoid":
        return logits[:, target]
    if against is not None:
        return logits[:, target] - logits[:, against]
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    return logits[:, target] - torch.logsumexp(others, dim=1)


def confidence(logits: Tensor, target: int, against: int | None, activation: str) -> Tensor:
    """Score (n,) of the target class, or of the pair."""
    p = torch.sigmoid(logits) if activation == "sigmoid" else torch.softmax(logits, dim=1)
    return p[:, target] if against is None else p[:, target] / (p[:, target] + p[:, against])


def slow_otsu(values: NDArray[np.float64]) -> float:
    """Otsu by trying all 255 splits of 256 bins on [0, 1] with two-class variances computed anew for each."""
    bins = np.clip(np.ceil(values.ravel() * 256) - 1, 0, 255)
    best, threshold = 0.0, 1.0
    for split in range(255):
        low, high = bins[bins <= split], bins[bins > split]
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if between > best * (1 + 1e-12):
                best, threshold = between, (split + 1) / 256
    return threshold


def reference_sise(
    forward: Callable[[Tensor], tuple[list[Tensor], Tensor]],
    picture: NDArray[np.float64],
    hidden: NDArray[np.float64],
    *,
    target: int,
    against: int | None = None,
    mu: float,
    activation: str = "softmax",
    lattices: Sequence[Lattice] | None = None,
) -> ReferenceMap:
    """Explain one window.

    Args:
        forward: pixels (n, C, H, W) -> block ends shallow to deep, logits (n, K).
        picture: (C, H, W) in pixel units.
        hidden: (C, H, W) the baseline.
        target: Class index.
        against: Rival class index.
        mu: Selection threshold.
        activation: "softmax" or "sigmoid".
        lattices: Where the cells of each block end lie; None: stretched from edge to edge.
    """
    size = picture.shape[1:]
    seen, baseline = torch.from_numpy(picture)[None], torch.from_numpy(hidden)[None]
    with torch.enable_grad():
        features, logits = forward(seen.requires_grad_())
        gradients = torch.autograd.grad(margin(logits, target, against, activation).sum(), features)
    alphas, blocks = [], []
    for block, gradient, lattice in zip(features, gradients, lattices or [None] * len(features), strict=True):
        alpha = gradient[0].sum(dim=(1, 2)).double()
        alphas.append(alpha.numpy())
        kept = (alpha > 0) & (alpha > mu * alpha.max())
        maps = block[0, kept].detach()
        blocks.append(_block_map(maps, forward, seen.detach(), baseline, size, target, against, activation, lattice))
    return ReferenceMap(alphas, blocks, _cascade([block for block in blocks if block is not None], size))


def _block_map(maps, forward, seen, baseline, size, target, against, activation, lattice):  # type: ignore[no-untyped-def]
    total, count = np.zeros(size), 0
    for feature in maps:
        up = _enlarged(feature[None, None], size, lattice)
        if float(up.max() - up.min()) <= 1e-6 * max(1.0, float(up.abs().max())):
            continue
        mask = (up - up.min()) / (up.max() - up.min())
        with torch.no_grad():
            _, logits = forward(mask * seen + (1 - mask) * baseline)
        score = float(confidence(logits, target, against, activation))
        total += score * mask[0, 0].double().numpy() / float(mask.double().sum())
        count += 1
    if count == 0 or np.ptp(total) == 0:
        return None
    return (total - total.min()) / np.ptp(total)


def _enlarged(feature: Tensor, size: tuple[int, int], lattice: Lattice | None) -> Tensor:
    """A feature map (1, 1, h, w) at the window's size; on a lattice, continued beyond its outer cells."""
    if lattice is None:
        return functional.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    down, across = (
        2 * (torch.arange(side, dtype=feature.dtype) - first) / step / (cells - 1) - 1
        for side, first, step, cells in zip(size, lattice.first, lattice.step, feature.shape[2:], strict=True)
    )
    places = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)[None]
    return functional.grid_sample(feature, places, mode="bilinear", padding_mode="border", align_corners=True)


def _cascade(maps: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.float64]:
    if not maps:
        return np.zeros(size)
    fused = maps[0]
    for later in maps[1:]:
        fused = (fused + later) * (later > slow_otsu(later))
    return fused
