"""What comes onto the review desk, and how urgently: decided once, when the desk first sees an inspection."""

import hashlib
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select
from sqlalchemy.orm import aliased

from inspect_xai.records import Status, VerdictCode
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.results import FAITHFULNESS, is_no_better_than_chance
from inspect_xai.storage.tables import Capture, Explanation, Inspection, Review, ReviewCursor, ReviewQueueItem

NEAR_THRESHOLD: Final = 0.1
"""A rejection whose score lies less than this above its threshold could as well have gone the other way."""

OUTSIDE: Final = 0.5
"""Less than this share of the map's energy inside the region of interest: the network looked elsewhere."""

_CHUNK: Final = 2000  # inspections taken in per transaction, so that no line waits for the desk


class Why(StrEnum):
    """What puts an inspection on the desk, most urgent first."""

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
    """How far an inspection has come on the desk."""

    OPEN = "open"
    DONE = "done"


BLIND_TIER: Final = 0
"""Parts judged blind stand together, first: among others of their kind their place would tell the verdict."""

TIERS: Final = {why: tier for tier, why in enumerate(Why, BLIND_TIER + 1)}
"""How urgent each is; the smallest comes first."""


def share_of(sha256: str, purpose: str) -> float:
    """A number in [0, 1) that a picture draws for a purpose, always the same one.

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
) -> Why | None:
    """Say what puts an inspection on the desk; None: nothing does."""
    if has_failed:
        return Why.FAILED
    if verdict == VerdictCode.UNSURE:
        return Why.UNSURE
    if verdict == VerdictCode.NG and score - threshold < NEAR_THRESHOLD:
        return Why.NEAR_THRESHOLD
    has_weak_map = "low_score_spread" in notes or is_no_better
    if verdict == VerdictCode.NG and (explanation_status not in ("", Status.EXPLAINED) or has_weak_map):
        return Why.WEAK_EXPLANATION
    if energy_in_roi is not None and energy_in_roi < OUTSIDE:
        return Why.OUTSIDE_ROI
    if verdict == VerdictCode.NG:
        return Why.NG
    return Why.SAMPLE if is_sample else None


def take_in(connection: Connection, *, blind_share: float = 0.0) -> int:
    """Put the next chunk of inspections on the desk, a share of them to be judged blind; how many came onto it."""
    seen = connection.execute(select(ReviewCursor.seen_id)).scalar() or 0
    ids = (
        connection.execute(select(Inspection.id).where(Inspection.id > seen).order_by(Inspection.id).limit(_CHUNK))
        .scalars()
        .all()
    )
    if not ids:
        return 0
    between = Inspection.id.between(ids[0], ids[-1])
    flagged = or_(
        Inspection.verdict != VerdictCode.OK, Inspection.explained_because != "", Inspection.failure_kind != ""
    )
    rows = [_row_of(row, blind_share) for row in connection.execute(_intake_query().where(between, flagged))]
    rows += [_row_of(row, blind_share, Why.DISAGREEMENT) for row in connection.execute(_disagreeing(between))]
    by_id: dict[int, dict[str, Any]] = {}
    for row in rows:
        known = by_id.get(row["inspection_id"])
        if row["why"] is not None and (known is None or TIERS[row["why"]] < TIERS[known["why"]]):
            by_id[row["inspection_id"]] = row
    if by_id:
        statement = upsert(connection, ReviewQueueItem).on_conflict_do_nothing(index_elements=["inspection_id"])
        connection.execute(statement, list(by_id.values()))
    mark = upsert(connection, ReviewCursor).values(id=1, seen_id=ids[-1])
    connection.execute(mark.on_conflict_do_update(index_elements=["id"], set_={"seen_id": mark.excluded.seen_id}))
    return len(by_id)


def _intake_query() -> Select[Any]:
    return (
        select(
            Inspection.id,
            Inspection.verdict,
            Inspection.label,
            Inspection.score,
            Inspection.threshold,
            Inspection.failure_kind,
            Inspection.explained_because,
            Inspection.inspected_at,
            Capture.sha256,
            Capture.line,
            Capture.station,
            Capture.shift,
            func.coalesce(Explanation.status, "").label("status"),
            Explanation.notes,
            Explanation.energy_in_roi,
            *(getattr(Explanation, name) for name in FAITHFULNESS),
            func.coalesce(
                select(func.max(Review.reviewer))
                .where(Review.inspection_id == Inspection.id, Review.blind == 0)
                .correlate(Inspection)
                .scalar_subquery(),
                "",
            ).label("reviewer"),
        )
        .join(Capture, Capture.id == Inspection.capture_id)
        .outerjoin(Explanation, Explanation.inspection_id == Inspection.id)
    )


def _disagreeing(between: ColumnElement[bool]) -> Select[Any]:
    """Inspections of one picture of which another model says something else; those already known come along."""
    other = aliased(Inspection)
    newer = aliased(Inspection)
    pairs = (
        select(other.id)
        .join(newer, and_(newer.capture_id == other.capture_id, newer.verdict != other.verdict))
        .where(newer.model_id != other.model_id)
    )
    fresh = select(Inspection.capture_id).where(between).scalar_subquery()
    return _intake_query().where(Inspection.id.in_(pairs.where(other.capture_id.in_(fresh))))


def _row_of(row: Row[Any], blind_share: float, why: Why | None = None) -> dict[str, Any]:
    why = why or why_on_desk(
        verdict=row.verdict,
        score=row.score,
        threshold=row.threshold,
        has_failed=bool(row.failure_kind),
        is_sample=row.explained_because != "",
        explanation_status=row.status,
        notes=row.notes or [],
        energy_in_roi=row.energy_in_roi,
        is_no_better=is_no_better_than_chance(row._asdict()),
    )
    # Where there is no picture, nobody judges by it.
    is_blind = why not in (None, Why.FAILED) and not row.reviewer and share_of(row.sha256, "blind") < blind_share
    return {
        "inspection_id": row.id,
        "state": State.DONE if row.reviewer else State.OPEN,
        "tier": BLIND_TIER if is_blind or why is None else TIERS[why],
        "why": why,
        "verdict": row.verdict,
        "label": row.label,
        "line": row.line,
        "station": row.station,
        "shift": row.shift,
        "inspected_at": row.inspected_at,
        "claimed_by": "",
        "claimed_until": None,
        "judged_by": row.reviewer,
        "blind": int(is_blind),
    }
