"""Which pictures a model has explained, by whatever policy."""

from sqlalchemy import select

from inspect_xai.records import Method, Status
from inspect_xai.storage import database
from inspect_xai.storage.store import Store
from inspect_xai.storage.tables import Capture, Explanation, Inspection, Model


def is_explained(store: Store, sha256: str, *, fingerprint: str, method: Method) -> bool:
    """Tell whether any inspection of a picture by this model holds an explanation by this method.

    Args:
        store: An open store.
        sha256: Of the picture's file.
        fingerprint: Of the model.
        method: An explanation by another one does not count.
    """
    query = (
        select(Explanation.id)
        .join(Inspection, Inspection.id == Explanation.inspection_id)
        .join(Capture, Capture.id == Inspection.capture_id)
        .join(Model, Model.id == Inspection.model_id)
        .where(Capture.sha256 == sha256, Model.fingerprint == fingerprint)
        .where(Explanation.method == method.value, Explanation.status != Status.FAILED.value)
    )
    with database.reading(store._engine) as connection:
        return connection.execute(query.limit(1)).first() is not None
