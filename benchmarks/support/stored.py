"""Inspections and explanations made in code, for the tests of the store."""

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from inspect_xai.records import (
    BlockMap,
    Capture,
    Explanation,
    InputSpec,
    Inspection,
    Method,
    ModelCard,
    Part,
    Prediction,
    Reason,
    RecordedSettings,
    Region,
    Run,
    Status,
    Tile,
    TileExplanation,
    Verdict,
    VerdictCode,
)
from inspect_xai.storage.store import Store

FINGERPRINT = "f" * 64
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
CARD = ModelCard("tile", "1", ("crack", "free"), InputSpec(16, 16), ok_labels=("free",))
RUN = Run("run-1", NOON, "CPUExecutionProvider", {"onnxruntime": "1.31.1"}, {"device": "cpu", "threads": 2})


def prepared(store: Store) -> Store:
    """Return a store in which `inspection` can be recorded."""
    store.registry.register_model(FINGERPRINT, CARD, registered_by="Ada")
    store.begin_run(RUN)
    return store


def smooth(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a map like a network's: blobs on a floor of zeros (as after a ReLU), with texture."""
    row, column = np.mgrid[0:size, 0:size] / size
    total = 0.05 * rng.random((size, size))
    for _ in range(6):
        top, left, width = rng.random(3)
        total = total + rng.random() * np.exp(-((row - top) ** 2 + (column - left) ** 2) / (0.004 + 0.02 * width))
    return np.maximum(total - 0.1, 0).astype(np.float32)


def explanation(rng: np.random.Generator, *, size: int = 16, sizes: tuple[int, ...] = (8, 4)) -> Explanation:
    """One tile, one block map per size and a dropped block at the end."""
    blocks = [
        BlockMap(f"block_{edge}", 24, 12, 6, 1, 0.5, 0.15, 0.1, 0.9, None if i == 0 else 0.4, sums=smooth(rng, edge))
        for i, edge in enumerate(sizes)
    ]
    blocks.append(BlockMap("deepest", 32, 0, 0, 0, float("nan"), 0.0, float("nan"), float("nan"), None, "flat"))
    fused = smooth(rng, size) * np.float32(len(sizes))
    tile = TileExplanation(Tile(3, -2, 5, size, size), Status.EXPLAINED, (0.75, 0.25), tuple(blocks), 0.1, 0.8)
    return Explanation(
        status=Status.EXPLAINED,
        settings=RecordedSettings(Method.SISE, "crack", against="free"),
        prediction=Prediction((0.75, 0.25), "crack", 0.75, 0.5, tile=3),
        fused=fused,
        block_maps={},
        tiles=(tile,),
        regions=(Region(1, 2, 3, 4, 10, 1.5, 0.75), Region(8, 9, 2, 2, 4, 0.5, 0.25)),
        forward_passes=14,
        provider="CPUExecutionProvider",
        timings_ms={"trace": 1.5, "score": 20.25},
        notes=("low_score_spread",),
        faithfulness={"drop": 0.25, "energy_in_roi": 0.875},
    )


def inspection(number: int, *, explained: Explanation | None = None, code: VerdictCode = VerdictCode.NG) -> Inspection:
    """Return the inspection of picture `number`; an explained one if an explanation is given."""
    reason = Reason.CLEAR if code is VerdictCode.OK else Reason.DEFECT_OVER_THRESHOLD
    return Inspection(
        capture=Capture(
            sha256=f"{number:064x}",
            file_name=f"L1/S3/SN{number:05d}.png",
            part=Part(f"SN{number:05d}", "housing", f"LOT{number // 10}"),
            captured_at=NOON + timedelta(seconds=number),
            line="L1",
            station=f"S{number % 3}",
            height_px=16,
            width_px=16,
            archived_to=f"archive/SN{number:05d}.png",
            pixels_sha256="a" * 64,
        ),
        fingerprint=FINGERPRINT,
        policy_version="1",
        run_id="run-1",
        inspected_at=NOON + timedelta(seconds=number + 1),
        verdict=Verdict(code, reason, "crack", 0.75, 0.5),
        prediction=Prediction((0.75, 0.25), "crack", 0.75, 0.5, tile=3),
        explanation=explained,
        explain_reason="ng" if explained else "",
        duration_ms=12.5,
    )


def of_part(given: Inspection, sha256: str, **changes: object) -> Inspection:
    """Return the same inspection of another picture of the same part."""
    return dataclasses.replace(given, capture=dataclasses.replace(given.capture, sha256=sha256, **changes))
