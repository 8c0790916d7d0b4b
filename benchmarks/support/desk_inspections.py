"""Inspections with pictures and explanations made in code, as the review desk shows them."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import sise
from inspect_xai.maths.regions import find_regions
from inspect_xai.records import (
    BlockMap,
    Capture,
    Explanation,
    Failure,
    InputSpec,
    Inspection,
    Method,
    ModelCard,
    Part,
    Prediction,
    Reason,
    RecordedSettings,
    Run,
    Status,
    Tile,
    TileExplanation,
    Verdict,
    VerdictCode,
)
from inspect_xai.storage.store import Store, open_store

SIZE = 96
FINGERPRINT = "c0ffee" + "0" * 58
LABELS = ("crack", "blowhole", "free")
CARD = ModelCard("tile-net", "3", LABELS, InputSpec(SIZE, SIZE), ok_labels=("free",))
NOW = datetime.now(UTC).replace(microsecond=0)
RUN = Run("run-desk", NOW, "CPUExecutionProvider", {"onnxruntime": "1"}, {"device": "cpu"})


def surface(number: int, *, with_defect: bool, size: int = SIZE) -> NDArray[np.uint8]:
    """Return a brushed surface, with a dark crack where a defect is wanted."""
    rng = np.random.default_rng(number)
    noise = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), sigmaX=6, sigmaY=0.6)
    picture = 128 + 60 * noise
    if with_defect:
        middle = size * (0.3 + 0.4 * rng.random(2))
        points = (middle + np.cumsum(rng.normal((2.2, 1.4), 2, (9, 2)), 0)).astype(np.int32)
        cv2.polylines(picture, [points.reshape(-1, 1, 2)], isClosed=False, color=35.0, thickness=2)
    return np.clip(picture, 0, 255).astype(np.uint8)


def explanation(picture: NDArray[np.uint8], *, target: str, scores: tuple[float, ...]) -> Explanation:
    """Return an explanation whose evidence lies where the picture is darkest, in two blocks of one window."""
    size = (picture.shape[0], picture.shape[1])
    dark = cv2.GaussianBlur((picture < 60).astype(np.float32), (0, 0), sigmaX=3)
    sums = [cv2.resize(dark, (edge, edge), interpolation=cv2.INTER_AREA) for edge in (size[0] // 4, size[0] // 12)]
    maps = [sise.normalized(each, size) for each in sums]
    fused = sise.fuse([each for each in maps if each is not None]).fused
    blocks = tuple(
        BlockMap(name, 24, 12, 6, 1, 0.5, 0.15, 0.1, 0.9, None if i == 0 else 0.4, sums=each)
        for i, (name, each) in enumerate(zip(("stem", "stage2"), sums, strict=True))
    )
    best = int(np.argmax(scores))
    return Explanation(
        status=Status.EXPLAINED,
        settings=RecordedSettings(Method.SISE, target),
        prediction=Prediction(scores, LABELS[best], scores[best], 0.3),
        fused=fused,
        block_maps={},
        tiles=(TileExplanation(Tile(0, 0, 0, *size), Status.EXPLAINED, scores, blocks, 0.1, 0.8),),
        regions=find_regions(fused, most=4),
        forward_passes=14,
        provider="CPUExecutionProvider",
        timings_ms={"masks": 20.0},
        faithfulness={"drop": 0.25},
    )


def inspection(archive: Path, number: int, code: VerdictCode = VerdictCode.NG, **changes: object) -> Inspection:
    """Return the inspection of a picture that is written to the archive; `changes` are those of its part."""
    score = {VerdictCode.NG: 0.93, VerdictCode.UNSURE: 0.44, VerdictCode.OK: 0.03}[code]
    reason = {
        VerdictCode.NG: Reason.DEFECT_OVER_THRESHOLD,
        VerdictCode.UNSURE: Reason.DEFECT_NEAR_THRESHOLD,
        VerdictCode.OK: Reason.CLEAR,
    }[code]
    picture = surface(number, with_defect=code is not VerdictCode.OK)
    scores = (score, 0.01, 1 - score - 0.01)
    done, data = cv2.imencode(".png", picture)
    assert done
    archive.mkdir(parents=True, exist_ok=True)
    file = archive / f"SN{number:05d}.png"
    file.write_bytes(data.tobytes())
    part = replace(Part(f"SN{number:05d}", "magnetic tile", f"LOT{number // 10:02d}"), **changes)  # type: ignore[arg-type]
    moment = NOW - timedelta(minutes=7 * number)
    best = int(np.argmax(scores))
    return Inspection(
        capture=Capture(
            sha256=hashlib.sha256(data.tobytes()).hexdigest(),
            file_name=f"L{number % 2 + 1}/S{number % 3 + 1}/{file.name}",
            part=part,
            captured_at=moment,
            line=f"L{number % 2 + 1}",
            station=f"S{number % 3 + 1}",
            camera="CAM1",
            view="TOP",
            shift="EARLY",
            height_px=SIZE,
            width_px=SIZE,
            archived_to=str(file),
        ),
        fingerprint=FINGERPRINT,
        policy_version="1",
        run_id=RUN.run_id,
        inspected_at=moment + timedelta(seconds=1),
        verdict=Verdict(code, reason, "crack", score, 0.5),
        prediction=Prediction(scores, LABELS[best], scores[best], 0.3),
        explanation=None if code is VerdictCode.OK else explanation(picture, target="crack", scores=scores),
        explain_reason="" if code is VerdictCode.OK else code.value.lower(),
        duration_ms=40.0,
    )


def failed(archive: Path, number: int) -> Inspection:
    """Return the inspection of a file that is no picture."""
    given = inspection(archive, number, VerdictCode.UNSURE)
    return replace(
        given,
        capture=replace(given.capture, sha256=f"{number:064x}", height_px=0, width_px=0),
        verdict=Verdict(VerdictCode.UNSURE, Reason.BAD_IMAGE, "", 0.0, 0.0),
        prediction=None,
        explanation=None,
        failure=Failure("PictureError", "the file is cut short. Expected a whole PNG."),
    )


def prepared(store: Store) -> Store:
    """Return a store in which `inspection` can be recorded."""
    store.registry.register_model(FINGERPRINT, CARD, registered_by="Ada")
    store.begin_run(RUN)
    return store


def filled(url: str, archive: Path, *, flagged: int = 6, good: int = 2) -> None:
    """Record NG and UNSURE in turn, then good parts."""
    codes = [VerdictCode.NG if i % 2 else VerdictCode.UNSURE for i in range(flagged)] + [VerdictCode.OK] * good
    with open_store(url) as store:
        prepared(store).record([inspection(archive, number, code) for number, code in enumerate(codes, 1)])
