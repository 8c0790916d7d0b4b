"""Which classes people overturn."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import aliased

from inspect_xai.records import Decision
from inspect_xai.storage import database
from inspect_xai.storage.store import Store
from inspect_xai.storage.tables import Inspection, Review


def overturned_labels(store: Store, since: datetime) -> frozenset[str]:
    """Return the labels of verdicts that people overturned since then, and what they called the parts instead.

    Args:
        store: An open store.
        since: Reviewed at or after; an answer that was corrected later does not count.
    """
    later = aliased(Review)
    query = (
        select(Inspection.label, Review.true_label)
        .join(Review, Review.inspection_id == Inspection.id)
        .outerjoin(later, later.supersedes_id == Review.id)
        .where(Review.decision == Decision.OVERTURN.value, Review.reviewed_at >= since, later.id.is_(None))
        .distinct()
    )
    with database.reading(store._engine) as connection:
        return frozenset(label for row in connection.execute(query) for label in row if label)
