"""The register of models, policies and audits."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from inspect_xai.errors import NotFoundError, StoreError
from inspect_xai.records import ModelCard, ModelStatus
from inspect_xai.storage import ledger, queries
from inspect_xai.storage.database import Database
from inspect_xai.storage.insert import get_or_create
from inspect_xai.storage.results import StoredModel
from inspect_xai.storage.tables import Audit, Model, Policy


class ModelRegistry:
    """The registered models, policies and audits of a database. Each call is one transaction.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def register_model(
        self,
        fingerprint: str,
        card: ModelCard,
        *,
        bundle_sha256: str | None = None,
        registered_by: str = "",
        other_files: bool = False,
    ) -> StoredModel:
        """Make a model known, as a candidate; one that is known already stays as it is.

        Args:
            fingerprint: Of its bundle.
            card: As the bundle has it.
            bundle_sha256: Of all files of the bundle; None: not known.
            registered_by: Who makes it known.
            other_files: Let other files than the registered ones stand for the model from now on: it is a candidate
                again, and without a golden result.

        Raises:
            BundleError: It is known with other files.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            number, is_new = get_or_create(
                connection,
                Model,
                {"fingerprint": fingerprint},
                name=card.name,
                version=card.version,
                card=dataclasses.asdict(card),
                status=ModelStatus.CANDIDATE.value,
                registered_at=now,
                registered_by=registered_by,
                status_at=now,
                status_by=registered_by,
                bundle_sha256=bundle_sha256,
            )
            if is_new:
                facts = {"change": "registered", "name": card.name, "version": card.version, "by": registered_by}
                facts |= _of_files(bundle_sha256)
                ledger.append(connection, "model", fingerprint, facts=facts, now=now, made={"model": [number]})
            known = queries.model(connection, Model.fingerprint == fingerprint)
            if bundle_sha256 is None or known.bundle_sha256 == bundle_sha256:
                return known
            if not other_files:
                known.check_files(bundle_sha256)
                return known
            facts = {"change": "registered again", "before": known.status, "by": registered_by}
            facts |= _of_files(bundle_sha256)
            values = _status(ModelStatus.CANDIDATE, by=registered_by, now=now)
            values |= {"bundle_sha256": bundle_sha256, "golden_result": None}
            return _change_model(connection, fingerprint, values, facts=facts, now=now)

    def set_model_status(
        self,
        fingerprint: str,
        status: ModelStatus,
        *,
        by: str,
        note: str = "",
        golden: Mapping[str, Any] | None = None,
        bundle_sha256: str | None = None,
    ) -> StoredModel:
        """Approve or retire a model; who did it, when, why and on which golden-set result goes to the ledger.

        Args:
            fingerprint: Of the model.
            status: The new one.
            by: Who says so.
            note: Why.
            golden: The result of its golden set; None: the one before stays.
            bundle_sha256: Of the files that were looked at. They must be the registered ones; where none are kept yet
                (the model was registered by an older version) they are kept from now on. None: none were looked at.

        Raises:
            BundleError: The files are not those that are registered.
            NotFoundError: The model is not registered.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            before = queries.model(connection, Model.fingerprint == fingerprint)
            values = _status(status, by=by, now=now)
            if golden is not None:
                values["golden_result"] = dict(golden)
            if bundle_sha256 is not None:
                before.check_files(bundle_sha256)
                values["bundle_sha256"] = bundle_sha256
            facts = {"change": status.value, "before": before.status, "by": by, "note": note}
            facts |= _of_files(bundle_sha256 or before.bundle_sha256)
            return _change_model(connection, fingerprint, values, facts=facts, now=now)

    def set_calibration(self, fingerprint: str, content: Mapping[str, Any], *, by: str) -> StoredModel:
        """Keep with the model how its scores become probabilities; who fitted it goes to the ledger.

        Raises:
            NotFoundError: The model is not registered.
        """
        with self._database.write() as connection:
            queries.model(connection, Model.fingerprint == fingerprint)
            facts = {"change": "calibrated", "by": by, "reviews": content.get("reviews")}
            values = {"calibration": dict(content)}
            return _change_model(connection, fingerprint, values, facts=facts, now=self._database.clock())

    def model(self, fingerprint: str) -> StoredModel:
        """Return the registered model with this fingerprint, or beginning of one.

        Raises:
            NotFoundError: None has it, or more than one begins so.
        """
        begins = Model.fingerprint.startswith(fingerprint, autoescape=True)
        with self._database.read() as connection:
            found = connection.execute(select(Model.id).where(begins).limit(2)).scalars().all()
            if len(found) > 1:
                raise NotFoundError(
                    f"several models' fingerprints begin with {fingerprint!r}", remedy="give more of it"
                )
            return queries.model(connection, Model.id == (found[0] if found else 0))

    def models(self) -> list[StoredModel]:
        """List all registered models, newest first."""
        with self._database.read() as connection:
            return queries.models(connection)

    def register_policy(self, version: str, content: Mapping[str, Any], *, by: str = "") -> None:
        """Keep what a policy version says, once and for all; who said it first goes to the ledger.

        Raises:
            StoreError: Something else is kept under that version already.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            number, _ = get_or_create(connection, Policy, {"version": version}, registered_at=now)
            before = connection.execute(select(Policy.content).where(Policy.id == number)).scalar()
            if before is None:
                connection.execute(update(Policy).where(Policy.id == number).values(content=dict(content)))
                ledger.append(connection, "policy", version, facts={"by": by}, now=now, made={"policy": [number]})
            elif before != dict(content):
                remedy = "give the changed policy a version of its own (setting line.policy_version)"
                raise StoreError(f"policy {version!r} is kept with another content", remedy=remedy)

    def record_audit(
        self,
        audit_id: str,
        fingerprint: str,
        *,
        audited_at: datetime,
        settings: Mapping[str, Any],
        numbers: Mapping[str, Any],
    ) -> bool:
        """Keep an audit's numbers beside its model; whether it was new. The same audit twice is one.

        Raises:
            NotFoundError: The model is not registered.
        """
        with self._database.write() as connection:
            queries.model(connection, Model.fingerprint == fingerprint)
            values = {
                "model_id": connection.execute(select(Model.id).where(Model.fingerprint == fingerprint)).scalar_one(),
                "audited_at": audited_at,
                "settings": dict(settings),
                "numbers": dict(numbers),
            }
            number, is_new = get_or_create(connection, Audit, {"audit_id": audit_id}, **values)
            if is_new:
                facts, now = {"audit": audit_id}, self._database.clock()
                ledger.append(connection, "audit", fingerprint, facts=facts, now=now, made={"audit": [number]})
            return is_new

    def audits(self, fingerprint: str) -> list[tuple[str, datetime, dict[str, Any], dict[str, Any]]]:
        """Audits of a model, oldest first: id, time, settings, numbers."""
        query = select(Audit.audit_id, Audit.audited_at, Audit.settings, Audit.numbers)
        query = query.join(Model, Model.id == Audit.model_id).where(Model.fingerprint == fingerprint)
        with self._database.read() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(Audit.id))]


def _status(status: ModelStatus, *, by: str, now: datetime) -> dict[str, Any]:
    return {"status": status.value, "status_at": now, "status_by": by}


def _change_model(
    connection: Connection, fingerprint: str, values: Mapping[str, Any], *, facts: Mapping[str, Any], now: datetime
) -> StoredModel:
    """Write columns of a model and the event that vouches for them."""
    statement = update(Model).where(Model.fingerprint == fingerprint).values(**values)
    number = connection.execute(statement.returning(Model.id)).scalar_one()
    ledger.append(connection, "model", fingerprint, facts=facts, now=now, made={"model": [number]})
    return queries.model(connection, Model.id == number)


def _of_files(bundle_sha256: str | None) -> dict[str, str]:
    """Return what an event records of a bundle's files, where they are known."""
    return {} if bundle_sha256 is None else {"bundle_sha256": bundle_sha256}
