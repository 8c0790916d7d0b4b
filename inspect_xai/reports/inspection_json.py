"""The JSON of an inspection: the desk's JSON interface, `show --json` and `find --whole` give the same."""

import dataclasses
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from inspect_xai.records import Capture, Failure, Region, Run, Verdict
from inspect_xai.storage.results import StoredInspection, StoredReview


class ExplanationOut(BaseModel):
    """How the explanation map was made and what it marks; the map itself is at `/inspections/{id}/map`."""

    status: str
    settings: dict[str, Any] = Field(description="all of them: the same on the same model give the same map")
    passes: int
    provider: str
    duration_ms: float
    timings_ms: dict[str, float | None]
    notes: tuple[str, ...]
    faithfulness: dict[str, float | None]
    support_share: float
    regions: tuple[Region, ...]
    has_map: bool
    map_sha256: str = Field(description="of the stored map: the ledger vouches for it")


class InspectionOut(BaseModel):
    """One inspection with everything that belongs to it."""

    inspection_id: int
    capture: Capture
    model_fingerprint: str
    model_name: str
    model_version: str
    model_status: str = Field(description="of the model when the verdict was recorded")
    policy_version: str
    run_id: str
    run: Run
    inspected_at: datetime
    recorded_at: datetime
    verdict: Verdict
    scores: dict[str, float | None] = Field(description="by label; empty: the picture did not reach the network")
    explanation: ExplanationOut | None
    explained_because: str
    failure: Failure | None
    duration_ms: float
    reviews: tuple[StoredReview, ...]


def inspection_json(inspection: StoredInspection) -> InspectionOut:
    """Return everything about an inspection but the pixels of picture and map."""
    explanation = inspection.explanation
    prediction = inspection.prediction
    labels = inspection.model.card["labels"]
    return InspectionOut(
        inspection_id=inspection.inspection_id,
        capture=inspection.capture,
        model_fingerprint=inspection.model.fingerprint,
        model_name=inspection.model.name,
        model_version=inspection.model.version,
        model_status=inspection.model_status,
        policy_version=inspection.policy_version,
        run_id=inspection.run.run_id,
        run=inspection.run,
        inspected_at=inspection.inspected_at,
        recorded_at=inspection.recorded_at,
        verdict=inspection.verdict,
        scores=_finite(dict(zip(labels, prediction.scores, strict=False))) if prediction else {},
        explanation=ExplanationOut(
            status=explanation.status,
            settings=dataclasses.asdict(explanation.settings),
            passes=explanation.forward_passes,
            provider=explanation.provider,
            duration_ms=explanation.duration_ms,
            timings_ms=_finite(explanation.timings_ms),
            notes=explanation.notes,
            faithfulness=_finite(explanation.faithfulness),
            support_share=explanation.coverage,
            regions=explanation.regions,
            has_map=not explanation.maps_deleted,
            map_sha256=explanation.fused_sha256,
        )
        if explanation
        else None,
        explained_because=inspection.explain_reason,
        failure=inspection.failure,
        duration_ms=inspection.duration_ms,
        reviews=inspection.reviews,
    )


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as JSON has them: None for NaN and infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
