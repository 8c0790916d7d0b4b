"""The record as JSON, for those who copy it elsewhere: the JSON interface and the command line write the same."""

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


def document(given: StoredInspection) -> InspectionOut:
    """Everything about an inspection but the pixels of picture and map."""
    explanation = given.explanation
    prediction = given.prediction
    return InspectionOut(
        inspection_id=given.inspection_id,
        capture=given.capture,
        model_fingerprint=given.model.fingerprint,
        model_name=given.model.name,
        model_version=given.model.version,
        model_status=given.model_status,
        policy_version=given.policy_version,
        run_id=given.run.run_id,
        run=given.run,
        inspected_at=given.inspected_at,
        recorded_at=given.recorded_at,
        verdict=given.verdict,
        scores=_finite(dict(zip(given.model.card["labels"], prediction.scores, strict=False))) if prediction else {},
        explanation=ExplanationOut(
            status=explanation.status,
            settings=dataclasses.asdict(explanation.settings),
            passes=explanation.passes,
            provider=explanation.provider,
            duration_ms=explanation.duration_ms,
            timings_ms=_finite(explanation.timings_ms),
            notes=explanation.notes,
            faithfulness=_finite(explanation.faithfulness),
            support_share=explanation.support_share,
            regions=explanation.regions,
            has_map=not explanation.maps_deleted,
            map_sha256=explanation.fused_sha256,
        )
        if explanation
        else None,
        explained_because=given.explained_because,
        failure=given.failure,
        duration_ms=given.duration_ms,
        reviews=given.reviews,
    )


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
