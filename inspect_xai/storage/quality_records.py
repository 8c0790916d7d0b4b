"""What the quality department writes down: baselines, calibrations, who saw which alarm, which alerts went out."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import zstandard
from sqlalchemy import insert, select

from inspect_xai.errors import StoreError
from inspect_xai.storage import database, ledger, queries
from inspect_xai.storage.ledger_documents import alert_key, chunks
from inspect_xai.storage.results import StoredModel
from inspect_xai.storage.store import Store
from inspect_xai.storage.tables import AlertSent, DriftBaseline, Model
from inspect_xai.storage.types import canonical

_ACKNOWLEDGED: Final = "alarm_acknowledged"
_MOST_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Baseline:
    """A quiet stretch that later days are held against; `content` is what was learnt from it, as plain values."""

    first: date
    last: date
    set_at: datetime
    set_by: str
    content: Mapping[str, Any] = dataclasses.field(hash=False)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Somebody has seen an alarm and says what comes of it."""

    alarm_id: str
    by: str
    at: datetime
    note: str


class Watchbook:
    """Each call is one transaction on the store.

    Args:
        store: An open store; it is not closed here.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._engine = store._engine

    def set_baseline(self, first: date, last: date, *, content: Mapping[str, Any], by: str) -> None:
        """Keep what the days first to last looked like; from now on it counts, and the ledger says who chose it."""
        packed = zstandard.ZstdCompressor(level=12).compress(canonical(content).encode())
        with database.writing(self._engine) as connection:
            now = self._store._clock()
            row = {"first_day": first.isoformat(), "last_day": last.isoformat(), "set_at": now, "set_by": by}
            made = insert(DriftBaseline).values(**row, content=packed).returning(DriftBaseline.id)
            number = connection.execute(made).scalar_one()
            facts = {"by": by, "cells": len(content.get("cells", ())), "bytes": len(packed)}
            made_rows = {"drift_baseline": [number]}
            ledger.append(connection, "drift_baseline", f"{first}/{last}", facts=facts, now=now, made=made_rows)

    def baseline(self) -> Baseline | None:
        """The baseline that counts: the one set last; None: none was."""
        query = select(DriftBaseline).order_by(DriftBaseline.id.desc()).limit(1)
        with database.reading(self._engine) as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        try:
            words = zstandard.ZstdDecompressor().decompress(row.content, max_output_size=_MOST_BYTES)
            content = json.loads(words)
        except (zstandard.ZstdError, ValueError) as error:
            raise StoreError(
                f"the drift baseline of {row.first_day} cannot be read: {error}",
                remedy="learn it again: inspect-xai drift baseline",
            ) from error
        return Baseline(
            date.fromisoformat(row.first_day), date.fromisoformat(row.last_day), row.set_at, row.set_by, content
        )

    def set_calibration(self, fingerprint: str, content: Mapping[str, Any], *, by: str) -> StoredModel:
        """Keep with the model how its scores become probabilities; who fitted it goes to the ledger.

        Raises:
            NotFoundError: The model is not registered.
        """
        with database.writing(self._engine) as connection:
            queries.model(connection, Model.fingerprint == fingerprint)
            now = self._store._clock()
            model = Model.__table__
            statement = model.update().where(model.c.fingerprint == fingerprint).values(calibration=dict(content))  # type: ignore[attr-defined]
            number = connection.execute(statement.returning(model.c.id)).scalar_one()
            facts = {"change": "calibrated", "by": by, "reviews": content.get("reviews")}
            ledger.append(connection, "model", fingerprint, facts=facts, now=now, made={"model": [number]})
            return queries.model(connection, model.c.id == number)

    def acknowledge(self, alarm_id: str, *, by: str, note: str = "") -> Acknowledgement:
        """Write into the ledger that somebody looks after an alarm; again, and both stand there."""
        with database.writing(self._engine) as connection:
            now = self._store._clock()
            ledger.append(connection, _ACKNOWLEDGED, alarm_id, facts={"by": by, "note": note}, now=now, made={})
        return Acknowledgement(alarm_id, by, now, note)

    def acknowledged(self) -> dict[str, Acknowledgement]:
        """The newest acknowledgement of each alarm that has one."""
        with database.reading(self._engine) as connection:
            return {
                event.subject: Acknowledgement(
                    event.subject, str(event.facts["by"]), event.occurred_at, str(event.facts["note"])
                )
                for event in ledger.events(connection, kind=_ACKNOWLEDGED)
            }

    def alerts_sent(self, channel: str, alert_ids: Collection[str]) -> set[str]:
        """Which of these alerts went out on a channel."""
        found: set[str] = set()
        with database.reading(self._engine) as connection:
            for chunk in chunks(alert_ids):
                query = select(AlertSent.alert_id).where(AlertSent.channel == channel, AlertSent.alert_id.in_(chunk))
                found |= set(connection.execute(query).scalars())
        return found

    def note_alerts(self, channel: str, texts: Mapping[str, str]) -> None:
        """Write down that alerts went out on a channel; `texts` by id."""
        with database.writing(self._engine) as connection:
            now = self._store._clock()
            rows = [
                {"alert_id": name, "channel": str(channel), "sent_at": now, "text": text}
                for name, text in texts.items()
            ]
            if rows:
                connection.execute(insert(AlertSent), rows)
                made = {"alert_sent": [alert_key(str(channel), name) for name in texts]}
                facts = {"alerts": sorted(texts)}
                ledger.append(connection, "alerts", str(channel), facts=facts, now=now, made=made)
