"""Reviews: a person's answers to verdicts, appended and vouched for by the ledger."""

import dataclasses
from datetime import datetime

from sqlalchemy import Connection, insert, select
from sqlalchemy.orm import aliased

from inspect_xai.errors import NotFoundError, StoreError
from inspect_xai.records import Decision, Review
from inspect_xai.storage import ledger, queries, tables
from inspect_xai.storage.database import Database
from inspect_xai.storage.results import StoredReview


def append(
    connection: Connection, inspection_id: int, review: Review, *, supersedes: int | None, now: datetime
) -> StoredReview:
    """Write an answer and its event in the open transaction.

    Raises:
        NotFoundError: There is no such inspection.
        StoreError: The reason code is not in the list, or the earlier answer was corrected meanwhile.
    """
    found = connection.execute(select(tables.InspectionRow.id).where(tables.InspectionRow.id == inspection_id)).first()
    if found is None:
        raise NotFoundError(f"no inspection {inspection_id}", remedy="list inspections with: inspect-xai find")
    if supersedes is not None:
        _check_supersedes(connection, inspection_id, supersedes)
    row = dataclasses.asdict(review)
    code = row.pop("reason_code")
    row |= {
        "inspection_id": inspection_id,
        "supersedes_id": supersedes,
        "reviewed_at": now,
        "decision": review.decision.value,
        "verdict": review.verdict.value,
        "reason_code_id": _reason(connection, code) if code else None,
        "blind": int(review.blind),
        "box": list(review.box) if review.box else None,
    }
    number = connection.execute(insert(tables.ReviewRow).values(**row).returning(tables.ReviewRow.id)).scalar_one()
    facts = {"review": number, "reviewer": review.reviewer, "decision": review.decision.value}
    ledger.append(connection, "review", str(inspection_id), facts=facts, now=now, made={"review": [number]})
    return next(each for each in queries.reviews(connection, inspection_id) if each.review_id == number)


def overturned_labels(database: Database, since: datetime) -> frozenset[str]:
    """Return the labels of verdicts that people overturned since then, and what they called the parts instead.

    Args:
        database: An open one.
        since: Reviewed at or after; an answer that was corrected later does not count.
    """
    later = aliased(tables.ReviewRow)
    query = (
        select(tables.InspectionRow.label, tables.ReviewRow.true_label)
        .join(tables.ReviewRow, tables.ReviewRow.inspection_id == tables.InspectionRow.id)
        .outerjoin(later, later.supersedes_id == tables.ReviewRow.id)
        .where(
            tables.ReviewRow.decision == Decision.OVERTURN.value,
            tables.ReviewRow.reviewed_at >= since,
            later.id.is_(None),
        )
        .distinct()
    )
    with database.read() as connection:
        return frozenset(label for row in connection.execute(query) for label in row if label)


def _check_supersedes(connection: Connection, inspection_id: int, supersedes: int) -> None:
    earlier = {each.review_id: each for each in queries.reviews(connection, inspection_id)}
    if supersedes not in earlier:
        raise NotFoundError(f"inspection {inspection_id} has no review {supersedes}")
    if earlier[supersedes].superseded:
        newest = max(earlier.values(), key=lambda each: each.review_id)
        raise StoreError(
            f"review {supersedes} was corrected meanwhile, by {newest.reviewer}: {newest.decision}",
            remedy="look at the newest answer, and correct that one if it is wrong",
        )


def _reason(connection: Connection, code: str) -> int:
    number = connection.execute(select(tables.ReasonCode.id).where(tables.ReasonCode.code == code)).scalar()
    if number is None:
        listed = connection.execute(select(tables.ReasonCode.code).order_by(tables.ReasonCode.id)).scalars().all()
        raise StoreError(f"no reason code {code!r} in the list", expected=f"one of {', '.join(listed) or 'none yet'}")
    return int(number)
