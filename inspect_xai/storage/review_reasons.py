"""Reasons and priorities for review, decided once, when an inspection is first considered."""

import hashlib
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select
from sqlalchemy.orm import aliased

from inspect_xai.records import Status, VerdictCode
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.results import FAITHFULNESS, is_no_better_than_chance
from inspect_xai.storage.tables import (
    CaptureRow,
    ExplanationRow,
    InspectionRow,
    ReviewCursor,
    ReviewQueueItem,
    ReviewRow,
)

NEAR_THRESHOLD: Final = 0.1
"""A rejection whose score lies less than this above its threshold could as well have gone the other way."""

OUTSIDE: Final = 0.5
"""Less than this share of the map's energy inside the region of interest: the network looked elsewhere."""

_CHUNK: Final = 2000  # inspections taken in per transaction, so that no line waits for the desk


class ReviewReason(StrEnum):
    """Reasons for a review, most urgent first."""

    FAILED = "failed"
    UNSURE = "unsure"
    NEAR_THRESHOLD = "near_threshold"
    WEAK_EXPLANATION = "weak_explanation"
    OUTSIDE_ROI = "outside_roi"
    DISAGREEMENT = "disagreement"
    DISPUTED = "disputed"
    SECOND_LOOK = "second_look"
    NG = "ng"
    SAMPLE = "sample"


class State(StrEnum):
    """Progress of a review."""

    OPEN = "open"
    DONE = "done"


BLIND_PRIORITY: Final = 0
"""Parts judged blind stand together, first: among others of their kind their place would reveal the verdict."""

PRIORITIES: Final = {reason: priority for priority, reason in enumerate(ReviewReason, BLIND_PRIORITY + 1)}
"""How urgent each is; the smallest comes first."""


def share_of(sha256: str, purpose: str) -> float:
    """Hash a picture and a purpose to a number in [0, 1), always the same one.

    >>> share_of("ab", "second") == share_of("ab", "second") != share_of("ab", "blind")
    True
    """
    digest = hashlib.sha256(f"{purpose}:{sha256}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def why_on_desk(
    *,
    verdict: str,
    score: float,
    threshold: float,
    has_failed: bool,
    is_sample: bool,
    explanation_status: str,
    notes: list[str],
    energy_in_roi: float | None,
    is_no_better: bool = False,
) -> ReviewReason | None:
    """Say what puts an inspection on the desk; None: nothing does."""
    if has_failed:
        return ReviewReason.FAILED
    if verdict == VerdictCode.UNSURE:
        return ReviewReason.UNSURE
    if verdict == VerdictCode.NG and score - threshold < NEAR_THRESHOLD:
        return ReviewReason.NEAR_THRESHOLD
    has_weak_map = "low_score_spread" in notes or is_no_better
    if verdict == VerdictCode.NG and (explanation_status not in ("", Status.EXPLAINED) or has_weak_map):
        return ReviewReason.WEAK_EXPLANATION
    if energy_in_roi is not None and energy_in_roi < OUTSIDE:
        return ReviewReason.OUTSIDE_ROI
    if verdict == VerdictCode.NG:
        return ReviewReason.NG
    return ReviewReason.SAMPLE if is_sample else None


def enqueue_new(connection: Connection, *, blind_share: float = 0.0) -> int:
    """Enqueue the next chunk of inspections, a share of them to be judged blind; return how many."""
    seen = connection.execute(select(ReviewCursor.last_enqueued_id)).scalar() or 0
    ids = (
        connection.execute(
            select(InspectionRow.id).where(InspectionRow.id > seen).order_by(InspectionRow.id).limit(_CHUNK)
        )
        .scalars()
        .all()
    )
    if not ids:
        return 0
    between = InspectionRow.id.between(ids[0], ids[-1])
    flagged = or_(
        InspectionRow.verdict != VerdictCode.OK, InspectionRow.explain_reason != "", InspectionRow.failure_kind != ""
    )
    rows = [_row_of(row, blind_share) for row in connection.execute(_intake_query().where(between, flagged))]
    rows += [_row_of(row, blind_share, ReviewReason.DISAGREEMENT) for row in connection.execute(_disagreeing(between))]
    by_id: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = by_id.get(row["inspection_id"])
        if row["reason"] is not None and (known is None or PRIORITIES[row["reason"]] < PRIORITIES[known["reason"]]):
            by_id[row["inspection_id"]] = row
    if by_id:
        statement = upsert(connection, ReviewQueueItem).on_conflict_do_nothing(index_elements=["inspection_id"])
        connection.execute(statement, list(by_id.values()))
    mark = upsert(connection, ReviewCursor).values(id=1, last_enqueued_id=ids[-1])
    connection.execute(
        mark.on_conflict_do_update(index_elements=["id"], set_={"last_enqueued_id": mark.excluded.last_enqueued_id})
    )
    return len(by_id)


def _intake_query() -> Select[Any]:
    return (
        select(
            InspectionRow.id,
            InspectionRow.verdict,
            InspectionRow.label,
            InspectionRow.score,
            InspectionRow.threshold,
            InspectionRow.failure_kind,
            InspectionRow.explain_reason,
            InspectionRow.inspected_at,
            CaptureRow.sha256,
            CaptureRow.line,
            CaptureRow.station,
            CaptureRow.shift,
            func.coalesce(ExplanationRow.status, "").label("status"),
            ExplanationRow.notes,
            ExplanationRow.energy_in_roi,
            *(getattr(ExplanationRow, name) for name in FAITHFULNESS),
            func.coalesce(
                select(func.max(ReviewRow.reviewer))
                .where(ReviewRow.inspection_id == InspectionRow.id, ReviewRow.blind == 0)
                .correlate(InspectionRow)
                .scalar_subquery(),
                "",
            ).label("reviewer"),
        )
        .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
        .outerjoin(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id)
    )


def _disagreeing(between: ColumnElement[bool]) -> Select[Any]:
    """Inspections of one picture of which another model says something else; those already known come along."""
    other = aliased(InspectionRow)
    newer = aliased(InspectionRow)
    pairs = (
        select(other.id)
        .join(newer, and_(newer.capture_id == other.capture_id, newer.verdict != other.verdict))
        .where(newer.model_id != other.model_id)
    )
    fresh = select(InspectionRow.capture_id).where(between).scalar_subquery()
    return _intake_query().where(InspectionRow.id.in_(pairs.where(other.capture_id.in_(fresh))))


def _row_of(row: Row[Any], blind_share: float, why: ReviewReason | None = None) -> dict[str, Any]:
    why = why or why_on_desk(
        verdict=row.verdict,
        score=row.score,
        threshold=row.threshold,
        has_failed=bool(row.failure_kind),
        is_sample=row.explain_reason != "",
        explanation_status=row.status,
        notes=row.notes or [],
        energy_in_roi=row.energy_in_roi,
        is_no_better=is_no_better_than_chance(row._asdict()),
    )
    # Where there is no picture, nobody judges by it.
    is_blind = (
        why not in (None, ReviewReason.FAILED) and not row.reviewer and share_of(row.sha256, "blind") < blind_share
    )
    return {
        "inspection_id": row.id,
        "state": State.DONE if row.reviewer else State.OPEN,
        "priority": BLIND_PRIORITY if is_blind or why is None else PRIORITIES[why],
        "reason": why,
        "verdict": row.verdict,
        "label": row.label,
        "line": row.line,
        "station": row.station,
        "shift": row.shift,
        "inspected_at": row.inspected_at,
        "claimed_by": "",
        "claimed_until": None,
        "first_reviewer": row.reviewer,
        "blind": int(is_blind),
    }
