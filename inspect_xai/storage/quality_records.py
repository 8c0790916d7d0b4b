"""Records of the quality department: drift baselines, acknowledged alarms, alerts sent."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import zstandard
from sqlalchemy import insert, select

from inspect_xai.errors import StoreError
from inspect_xai.storage import ledger
from inspect_xai.storage.database import Database
from inspect_xai.storage.ledger_documents import alert_key, chunks
from inspect_xai.storage.tables import AlertSent, DriftBaselineRow
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
class Acknowledgment:
    """Somebody has seen an alarm and says what comes of it."""

    alarm_id: str
    by: str
    at: datetime
    note: str


class QualityRecords:
    """The records of the quality department. Each call is one transaction.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_baseline(self, first: date, last: date, *, content: Mapping[str, Any], by: str) -> None:
        """Keep what the days first to last looked like; from now on it counts, and the ledger says who chose it."""
        packed = zstandard.ZstdCompressor(level=12).compress(canonical(content).encode())
        with self._database.write() as connection:
            now = self._database.clock()
            row = {"first_day": first.isoformat(), "last_day": last.isoformat(), "set_at": now, "set_by": by}
            made = insert(DriftBaselineRow).values(**row, content=packed).returning(DriftBaselineRow.id)
            number = connection.execute(made).scalar_one()
            facts = {"by": by, "cells": len(content.get("cells", ())), "bytes": len(packed)}
            made_rows = {"drift_baseline": [number]}
            ledger.append(connection, "drift_baseline", f"{first}/{last}", facts=facts, now=now, made=made_rows)

    def baseline(self) -> Baseline | None:
        """Return the baseline in force, which is the one set last; None: none was set."""
        query = select(DriftBaselineRow).order_by(DriftBaselineRow.id.desc()).limit(1)
        with self._database.read() as connection:
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

    def acknowledge(self, alarm_id: str, *, by: str, note: str = "") -> Acknowledgment:
        """Write into the ledger that somebody looks after an alarm; again, and both stand there."""
        with self._database.write() as connection:
            now = self._database.clock()
            ledger.append(connection, _ACKNOWLEDGED, alarm_id, facts={"by": by, "note": note}, now=now, made={})
        return Acknowledgment(alarm_id, by, now, note)

    def acknowledged(self) -> dict[str, Acknowledgment]:
        """Return the newest acknowledgment of each alarm that has one."""
        with self._database.read() as connection:
            return {
                event.subject: Acknowledgment(
                    event.subject, str(event.facts["by"]), event.occurred_at, str(event.facts["note"])
                )
                for event in ledger.events(connection, kind=_ACKNOWLEDGED)
            }

    def alerts_sent(self, channel: str, alert_ids: Collection[str]) -> set[str]:
        """Return those of these alerts that were sent on a channel."""
        found: set[str] = set()
        with self._database.read() as connection:
            for chunk in chunks(alert_ids):
                query = select(AlertSent.alert_id).where(AlertSent.channel == channel, AlertSent.alert_id.in_(chunk))
                found |= set(connection.execute(query).scalars())
        return found

    def note_alerts(self, channel: str, texts: Mapping[str, str]) -> None:
        """Write down that alerts went out on a channel; `texts` by id."""
        with self._database.write() as connection:
            now = self._database.clock()
            rows = [
                {"alert_id": name, "channel": str(channel), "sent_at": now, "text": text}
                for name, text in texts.items()
            ]
            if rows:
                connection.execute(insert(AlertSent), rows)
                made = {"alert_sent": [alert_key(str(channel), name) for name in texts]}
                facts = {"alerts": sorted(texts)}
                ledger.append(connection, "alerts", str(channel), facts=facts, now=now, made=made)
