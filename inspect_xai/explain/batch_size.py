"""Batch size: the number of masks in a run, as given, as measured on this machine, or the device's default.

`inspect-xai bench --save` stores it in the user's cache folder, one entry for a model on a device of a machine with a
number of threads. On a GPU, where it matters much, a line without an entry measures and stores one itself; on a CPU,
where sizes differ by less than two measurements of one do, it takes the default.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from inspect_xai.explain.save import versions
from inspect_xai.model.engine import Engine

CPU_MEMORY_MB = 1000
"""Default limit of how far runs make the process grow on a CPU; a GPU's own memory is its limit."""

_log = logging.getLogger(__name__)
_AS_FAST = 0.97  # a smaller bucket with this share of the largest rate is taken: the rest is noise
_GPU_BUCKETS = (8, 16, 32, 64, 128)
_ROUNDS = 3
_MOST_BYTES = 1 << 20


class Origin(StrEnum):
    """Where a bucket comes from."""

    ASKED = "asked"
    KEPT = "kept"
    MEASURED = "measured"
    DEFAULT = "default"
    FIXED = "fixed"  # the network takes one picture at a time


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurement of one bucket: masks a second, and how far the process grew beyond runs of one mask, in MB."""

    per_s: float
    grown_mb: float = 0.0


def resolve_batch_size(engine: Engine, *, asked: int | None = None) -> Origin:
    """Set an engine's bucket to `asked`, else to what is stored or, on a GPU, measured now; return its origin."""
    if not engine.bundle.dynamic_batch:
        return Origin.FIXED
    if asked:
        engine.bucket = asked
        return Origin.ASKED
    if (stored := load_batch_size(engine)) is not None:
        engine.bucket = stored
        return Origin.KEPT
    if engine.device == "cpu":
        return Origin.DEFAULT
    measured = _measure(engine)
    engine.bucket = choose_bucket(measured, memory_mb=None)
    save_batch_size(engine, engine.bucket, measured)
    return Origin.MEASURED


def choose_bucket(measured: Mapping[int, Measured], *, memory_mb: float | None) -> int:
    """Choose the smallest bucket that is as fast as any within the memory.

    Args:
        measured: By bucket, at least one.
        memory_mb: How far the process may grow; None: unbounded. The smallest bucket is always allowed.

    >>> choose_bucket({4: Measured(98, 10), 8: Measured(99, 40), 16: Measured(140, 900)}, memory_mb=500)
    4
    """
    smallest = min(measured)
    allowed = {
        bucket: of_bucket.per_s
        for bucket, of_bucket in measured.items()
        if memory_mb is None or of_bucket.grown_mb <= memory_mb or bucket == smallest
    }
    return min(bucket for bucket, per_s in allowed.items() if per_s >= _AS_FAST * max(allowed.values()))


def load_batch_size(engine: Engine) -> int | None:
    """Return the stored bucket for this model, device, machine and number of threads; None where there is none."""
    bucket = _entries().get(_key(engine), {}).get("bucket")
    return bucket if isinstance(bucket, int) and not isinstance(bucket, bool) and bucket > 0 else None


def save_batch_size(engine: Engine, bucket: int, measured: Mapping[int, Measured]) -> Path | None:
    """Store a bucket for this model, device, machine and number of threads.

    Returns:
        The file; None where it cannot be written, which is logged.
    """
    entry = {
        "bucket": bucket,
        "model": f"{engine.card.name} {engine.card.version}",
        "device": engine.device,
        "threads": engine.threads,
        "per_s": {str(size): round(of_size.per_s, 1) for size, of_size in measured.items()},
    }
    path = _file()
    try:
        if path is None:
            raise OSError("there is no home")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(_entries() | {_key(engine): entry}, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        _log.warning("the bucket %d cannot be saved at %s: %s", bucket, path, error)
        return None
    return path


def resident_mb() -> float:
    """Return the resident memory of this process; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure(engine: Engine) -> dict[int, Measured]:
    """Score masks with larger and larger buckets, until memory runs out."""
    spec = engine.card.input
    window = np.zeros((spec.height, spec.width, spec.depth), np.float32)
    maps = np.random.default_rng(0).random((_GPU_BUCKETS[-1], *engine.bundle.map_size), np.float32)
    notes = list(engine.notes)
    measured: dict[int, Measured] = {}
    for bucket in _GPU_BUCKETS:
        engine.bucket = bucket
        seconds = []
        for _ in range(1 + _ROUNDS):
            start = time.perf_counter()
            engine.score_masks(window, maps, baseline=window)
            seconds.append(time.perf_counter() - start)
        if engine.bucket < bucket:  # it did not fit: what ran was a smaller one
            break
        measured[bucket] = Measured(len(maps) / median(seconds[1:]))
    engine.notes[:] = notes  # without those about buckets that did not fit
    return measured or {engine.bucket: Measured(1.0)}


def _entries() -> dict[str, Any]:
    path = _file()
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return {}
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {key: entry for key, entry in entries.items() if isinstance(entry, dict)} if isinstance(entries, dict) else {}
    )


def _key(engine: Engine) -> str:
    """Return the key of a measurement; another version of ONNX Runtime has other kernels."""
    parts = (
        engine.bundle.fingerprint,
        engine.device,
        engine.provider,
        str(engine.threads),
        versions()["onnxruntime-gpu"],
        platform.node(),
        platform.machine(),
        str(os.cpu_count()),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file() -> Path | None:
    """Return the file in the user's cache folder; None where there is no such folder."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        cache = Path(named) if named else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "inspect-xai" / "buckets.json"
