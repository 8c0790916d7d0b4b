"""How fast a bundle runs on this machine, and what that means for a night's pictures."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import sise, tiles
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine, Trace
from inspect_xai.model.session import physical_cores
from inspect_xai.pipeline.explain import PROFILE_SHARE
from inspect_xai.pipeline.scoring import OVERHEAD_PASSES, Limit
from inspect_xai.records import Method, Profile, SelectionRule

BUCKETS = (1, 2, 4, 8, 16)
_MASKS = 16  # of every measurement: the largest bucket, so that all buckets do the same work


@dataclass(frozen=True, slots=True)
class Rate:
    """Forward passes of masked pictures per second: median, slowest and fastest round."""

    threads: int
    bucket: int
    per_s: float
    slowest_per_s: float
    fastest_per_s: float


@dataclass(frozen=True, slots=True)
class Expected:
    """What one explanation of one window takes under a profile, and whether the night's pictures fit.

    `hours` and `fits` are None where no pictures were asked about.
    """

    profile: Profile
    passes: int
    seconds: float
    hours: float | None = None
    fits: bool | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, what it would choose, and what follows.

    Attributes:
        rates: Every combination of threads and bucket.
        best: The fastest of them.
        look_s: Seconds to judge one picture with `best`, all its windows.
        windows: Windows of that picture.
        expected: One entry per profile.
    """

    provider: str
    rates: tuple[Rate, ...]
    best: Rate
    look_s: float
    windows: int
    expected: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Night:
    """How many pictures are to be done in how many hours, and which share of them is explained."""

    pictures: int
    hours: float
    explained: float = 1.0


def bench(
    bundle: ModelBundle,
    picture: NDArray[np.uint8] | None = None,
    *,
    device: str = "auto",
    threads: Sequence[int] = (),
    buckets: Sequence[int] = BUCKETS,
    rounds: int = 5,
    night: Night | None = None,
) -> BenchReport:
    """Measure forward passes, all settings in turn in every round, so that a busy moment strikes none alone.

    Args:
        bundle: The model.
        picture: uint8 (H, W) or RGB (H, W, 3): how many masks an explanation takes depends on it; default: noise of
            the network's input size, which has evidence everywhere and so costs about the most.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Settings to try; default: 1 and all cores.
        buckets: Masks per run to try; where the network's batch size is fixed only 1 is.
        rounds: How often everything is measured, after one round that does not count.
        night: What must fit.

    Raises:
        DeviceError: If the device does not run.
    """
    spec = bundle.card.input
    if picture is None:
        shape = (spec.height, spec.width, 3)
        picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seen = tiles.as_channels(picture, spec.channels)
    places = tiles.windows((seen.shape[0], seen.shape[1]), spec)
    window = tiles.cut(seen, places[0], spec)
    tried = tuple(threads) or tuple(sorted({1, physical_cores()}))
    with ExitStack() as stack:
        engines = {count: stack.enter_context(Engine(bundle, device=device, threads=count)) for count in tried}
        provider = engines[tried[0]].provider
        trace = engines[tried[0]].trace(window)
        rates = _rates(engines, window, trace, buckets=buckets if bundle.dynamic_batch else (1,), rounds=rounds)
        best = max(rates, key=lambda rate: rate.per_s)
        engine = engines[best.threads]
        engine.bucket = best.bucket
        start = time.perf_counter()
        engine.trace(window)
        overhead_s = time.perf_counter() - start
        start = time.perf_counter()
        engine.predict(np.stack([window] * min(len(places), best.bucket)))
        look_s = (time.perf_counter() - start) * len(places) / min(len(places), best.bucket)
    expected = tuple(
        _expect(profile, _passes(bundle, trace, profile), best=best, overhead_s=overhead_s, look_s=look_s, night=night)
        for profile in Profile
    )
    return BenchReport(provider, tuple(rates), best, look_s, len(places), expected)


def _rates(
    engines: dict[int, Engine],
    window: NDArray[np.float32],
    trace: Trace,
    *,
    buckets: Sequence[int],
    rounds: int,
) -> list[Rate]:
    deepest = list(trace.features.values())[-1]
    maps = np.resize(deepest, (_MASKS, *deepest.shape[1:]))
    settings = [(threads, bucket) for threads in engines for bucket in buckets]
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for number in range(rounds + 1):
        for threads, bucket in settings:
            engine = engines[threads]
            engine.bucket = bucket
            start = time.perf_counter()
            engine.score_masks(window, maps, baseline=window)
            if number:
                seconds[threads, bucket].append(time.perf_counter() - start)
    return [
        Rate(threads, bucket, _MASKS / median(spent), _MASKS / max(spent), _MASKS / min(spent))
        for (threads, bucket), spent in seconds.items()
    ]


def _passes(bundle: ModelBundle, trace: Trace, profile: Profile) -> int:
    """Count the forward passes that SISE takes for one window under a profile."""
    spec = bundle.card.explain
    rule = SelectionRule.ADA if spec.method is Method.ADA_SISE else SelectionRule.MU
    mu = spec.mu if profile is Profile.EXACT else 0.0
    size = (bundle.card.input.height, bundle.card.input.width)
    masks = 0
    for name, features in trace.features.items():
        kept = sise.select(trace.alphas[name], rule=rule, mu=mu).kept
        masks += int(sise.with_contrast(features[kept], size).sum())
    return OVERHEAD_PASSES + Limit(PROFILE_SHARE[profile], None, None).masks(masks)


def _expect(
    profile: Profile, passes: int, *, best: Rate, overhead_s: float, look_s: float, night: Night | None
) -> Expected:
    seconds = overhead_s + (passes - 1) / best.per_s
    if night is None:
        return Expected(profile, passes, seconds)
    hours = night.pictures * (look_s + night.explained * seconds) / 3600
    return Expected(profile, passes, seconds, hours, hours <= night.hours)
