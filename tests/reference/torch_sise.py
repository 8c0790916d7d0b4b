"""SISE in plain torch, written from the equations: autograd for alphas, every mask materialised, no shortcuts.

Nothing here is shared with the product, so that the two can only agree by both being right.
"""

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
    """
    size = picture.shape[1:]
    seen, baseline = torch.from_numpy(picture)[None], torch.from_numpy(hidden)[None]
    with torch.enable_grad():
        features, logits = forward(seen.requires_grad_())
        gradients = torch.autograd.grad(margin(logits, target, against, activation).sum(), features)
    alphas, blocks = [], []
    for block, gradient in zip(features, gradients, strict=True):
        alpha = gradient[0].sum(dim=(1, 2)).double()
        alphas.append(alpha.numpy())
        kept = (alpha > 0) & (alpha > mu * alpha.max())
        maps = block[0, kept].detach()
        blocks.append(_block_map(maps, forward, seen.detach(), baseline, size, target, against, activation))
    return ReferenceMap(alphas, blocks, _cascade([block for block in blocks if block is not None], size))


def _block_map(maps, forward, seen, baseline, size, target, against, activation):  # type: ignore[no-untyped-def]
    total, count = np.zeros(size), 0
    for feature in maps:
        up = functional.interpolate(feature[None, None], size=size, mode="bilinear", align_corners=False)
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


def _cascade(maps: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.float64]:
    if not maps:
        return np.zeros(size)
    fused = maps[0]
    for later in maps[1:]:
        fused = (fused + later) * (later > slow_otsu(later))
    return fused
