"""Benchmark of a bundle on this machine, and whether a night's pictures fit."""

import functools
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from inspect_xai.explain.batch_size import (
    CPU_MEMORY_MB,
    Measured,
    choose_bucket,
    load_batch_size,
    resident_mb,
    save_batch_size,
)
from inspect_xai.explain.budget import PassBudget, overhead_passes
from inspect_xai.explain.settings import PROFILE_SHARE
from inspect_xai.maths import sise, tiles
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import Engine, Trace
from inspect_xai.model.session import physical_cores
from inspect_xai.records import Method, Profile, SelectionRule

BUCKETS = (1, 2, 4, 8, 16)
_BURST_S = 0.7  # shorter ones were off by tens of percent on a machine that is not alone
_MASKS = 16  # of every measurement: the largest bucket, so that all buckets do the same work


@dataclass(frozen=True, slots=True)
class Rate:
    """Forward passes of masked pictures per second: median, slowest and fastest round; of all processes together.

    `grown_mb`: how far runs of this bucket made the process grow beyond runs of one mask.
    """

    threads: int
    bucket: int
    per_s: float
    slowest_per_s: float
    fastest_per_s: float
    processes: int = 1
    grown_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The smallest bucket that is as fast as any within the memory, for a number of threads.

    Attributes:
        threads: Threads inside one operator.
        bucket: Chosen now.
        before: What a line with this number of threads would have taken: the stored one, or the default.
        kept: File in which the choice is stored; None: it is not.
    """

    threads: int
    bucket: int
    before: int
    kept: Path | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """Time of one explanation of one window under a profile, and whether the night's pictures fit.

    `hours` and `fits` are None where no number of pictures is given.
    """

    profile: Profile
    passes: int
    seconds: float
    hours: float | None = None
    fits: bool | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Measurements, the buckets chosen by them, and the expected times.

    Attributes:
        rates: Every combination of threads and bucket.
        best: The fastest of them.
        chosen: The bucket for each number of threads.
        shared: One process with all cores, and as many processes as cores with one each; empty where not compared.
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
    shared: tuple[Rate, ...] = ()
    chosen: tuple[Chosen, ...] = ()


@dataclass(frozen=True, slots=True)
class Night:
    """Number of pictures to inspect in a number of hours, and the share of them that is explained."""

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
    memory_mb: float = CPU_MEMORY_MB,
    keep: bool = False,
) -> BenchReport:
    """Measure forward passes, all settings in turn in every round, so that other load affects them alike.

    Args:
        bundle: The model.
        picture: uint8 (H, W) or RGB (H, W, 3), on which the number of masks depends; default: noise of the network's
            input size, which has evidence everywhere and so takes about the most masks.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Settings to try; default: 1 and all cores, and on a CPU also a process for each core.
        buckets: Masks per run to try; where the network's batch size is fixed only 1 is.
        rounds: Number of rounds, after one for warming up.
        night: The pictures that must fit.
        memory_mb: How far a bucket may make the process grow on a CPU.
        keep: Store the chosen buckets for lines and explanations on this machine.

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
        before = {count: load_batch_size(engine) or engine.bucket for count, engine in engines.items()}
        trace = engines[tried[0]].trace(window)
        rates = _rates(engines, window, trace, buckets=buckets if bundle.dynamic_batch else (1,), rounds=rounds)
        best = max(rates, key=lambda rate: rate.per_s)
        chosen = tuple(_choose(engine, rates, before[count], memory_mb, keep=keep) for count, engine in engines.items())
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
    cores = physical_cores()
    compared = not threads and cores > 1 and provider == "CPUExecutionProvider"
    shared = compare_processes(bundle.folder, cores, bucket=best.bucket, rounds=rounds) if compared else ()
    return BenchReport(provider, tuple(rates), best, look_s, len(places), expected, shared, chosen)


def compare_processes(folder: Path, cores: int, *, bucket: int, rounds: int) -> tuple[Rate, ...]:
    """Measure one process with all cores and one process for each core, in turn.

    Returns:
        The rate of the one process, and that of the several together.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked child would inherit locks of the runtime's threads
    counts = (1, cores)
    seen: dict[int, list[float]] = {count: [] for count in counts}
    with ExitStack() as stack:
        crews = {
            count: [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(count)]
            for count in counts
        }
        for number in range(rounds + 1):
            for count, crew in crews.items():
                bursts = [worker.submit(_burst, folder, cores // count, bucket) for worker in crew]
                together = sum(burst.result() for burst in bursts)
                if number:
                    seen[count].append(together)
    return tuple(
        Rate(cores // count, bucket, median(rates), min(rates), max(rates), processes=count)
        for count, rates in seen.items()
    )


def _burst(folder: Path, threads: int, bucket: int) -> float:
    """Score masks for a while in this process; return how many a second."""
    engine = _opened(folder, threads, bucket)
    spec = engine.card.input
    window = np.zeros((spec.height, spec.width, spec.depth), np.float32)
    maps = np.random.default_rng(0).random((_MASKS, *engine.bundle.map_size), np.float32)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < _BURST_S:
        engine.score_masks(window, maps, baseline=window)
        done += _MASKS
    return done / (time.perf_counter() - start)


@functools.cache
def _opened(folder: Path, threads: int, bucket: int) -> Engine:
    return Engine(load_bundle(folder), device="cpu", threads=threads, bucket=bucket)


def _rates(
    engines: dict[int, Engine], window: NDArray[np.float32], trace: Trace, *, buckets: Sequence[int], rounds: int
) -> list[Rate]:
    deepest = list(trace.features.values())[-1]
    maps = np.resize(deepest, (_MASKS, *deepest.shape[1:]))
    settings = [(threads, bucket) for threads in engines for bucket in buckets]
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    grown: dict[int, float] = dict.fromkeys(buckets, 0.0)
    for engine in engines.values():
        engine.score_masks(window, maps[:1], baseline=window)
    at_first_mb = resident_mb()
    for number in range(rounds + 1):
        for threads, bucket in settings:
            engine = engines[threads]
            engine.bucket = bucket
            start = time.perf_counter()
            engine.score_masks(window, maps, baseline=window)
            grown[bucket] = max(grown[bucket], resident_mb() - at_first_mb) if not number else grown[bucket]
            if number:
                seconds[threads, bucket].append(time.perf_counter() - start)
    return [
        Rate(
            threads,
            bucket,
            _MASKS / median(spent),
            _MASKS / max(spent),
            _MASKS / min(spent),
            grown_mb=max(0.0, grown[bucket]),
        )
        for (threads, bucket), spent in seconds.items()
    ]


def _choose(engine: Engine, rates: Sequence[Rate], before: int, memory_mb: float, *, keep: bool) -> Chosen:
    own = {rate.bucket: Measured(rate.per_s, rate.grown_mb) for rate in rates if rate.threads == engine.threads}
    bucket = choose_bucket(own, memory_mb=memory_mb if engine.device == "cpu" else None)
    return Chosen(engine.threads, bucket, before, save_batch_size(engine, bucket, own) if keep else None)


def _passes(bundle: ModelBundle, trace: Trace, profile: Profile) -> int:
    """Count the forward passes that SISE, or the variant on the card, takes for one window under a profile."""
    spec = bundle.card.explain
    rule = SelectionRule.ADA if spec.method is Method.ADA_SISE else SelectionRule.MU
    mu = spec.mu if profile is Profile.EXACT else 0.0
    size = (bundle.card.input.height, bundle.card.input.width)
    masks = 0
    for name, grid in bundle.grids.items():
        kept = sise.select(trace.alphas[name], rule=rule, mu=mu).kept
        masks += int(sise.with_contrast(*sise.extremes(trace.features[name][kept], size, grid=grid)).sum())
    limit = PassBudget(PROFILE_SHARE[profile], None, None, overhead_passes(spec.method))
    return limit.overhead + limit.masks(masks)


def _expect(
    profile: Profile, passes: int, *, best: Rate, overhead_s: float, look_s: float, night: Night | None
) -> Expected:
    seconds = overhead_s + (passes - 1) / best.per_s
    if night is None:
        return Expected(profile, passes, seconds)
    hours = night.pictures * (look_s + night.explained * seconds) / 3600
    return Expected(profile, passes, seconds, hours, hours <= night.hours)
