"""How inspections become rows. Maps are encoded before the transaction, so that it stays short."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Insert, select
from sqlalchemy.dialects import postgresql, sqlite

from inspect_xai.errors import StoreError
from inspect_xai.records import Capture, Explanation, Inspection
from inspect_xai.storage import tables
from inspect_xai.storage.blobs import Blob, Precision, encode
from inspect_xai.storage.blobstore import BlobStore
from inspect_xai.storage.stored import RecordedInspection


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedMaps:
    """The maps of one explanation, ready to be written: the fused one, and the sums by (tile, block) position."""

    fused: Blob
    sums: dict[tuple[int, int], Blob]

    def all(self) -> list[Blob]:
        """Each different one once."""
        return list({blob.sha256: blob for blob in (self.fused, *self.sums.values())}.values())


def encoded_maps(explanation: Explanation) -> EncodedMaps:
    """Encode what every map of an explanation can be rebuilt from."""
    sums = {
        (row, position): encode(block.sums, precision=Precision.STEPS13)
        for row, tile in enumerate(explanation.tiles)
        for position, block in enumerate(tile.blocks)
        if block.sums is not None
    }
    return EncodedMaps(encode(explanation.fused, precision=Precision.STEPS12), sums)


def inserting(connection: Connection, table: type[tables.Base]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT; both databases spell it alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def found_or_made(connection: Connection, table: Any, key: Mapping[str, Any], /, **others: Any) -> tuple[int, bool]:
    """The id of the row with this unique key, made if there was none; and whether it was made."""
    statement: Insert = inserting(connection, table).values(**key, **others)
    statement = statement.on_conflict_do_nothing(index_elements=list(key)).returning(table.id)  # type: ignore[attr-defined]
    made = connection.execute(statement).scalar()
    if made is not None:
        return int(made), True
    found = select(table.id).where(*(getattr(table, name) == value for name, value in key.items()))
    return int(connection.execute(found).scalar_one()), False


class Recorder:
    """Writes inspections in one open transaction; what many of them share is looked up once."""

    def __init__(self, connection: Connection, now: datetime, *, blobs: BlobStore | None = None) -> None:
        self._connection = connection
        self._blob_store = blobs
        self._now = now
        self._known: dict[tuple[object, ...], Any] = {}
        self.new_policies: list[int] = []

    def record(self, inspection: Inspection, maps: EncodedMaps | None) -> RecordedInspection:
        """Write one inspection with all that belongs to it, unless it stands there already."""
        model_id, model_status = self._model(inspection.fingerprint)
        key = {
            "capture_id": self._capture(inspection.capture),
            "model_id": model_id,
            "policy_id": self._policy(inspection.policy_version),
        }
        run_id = self._run(inspection.run_id)
        facts = _facts(inspection) | {"run_id": run_id, "model_status": model_status, "recorded_at": self._now}
        inspection_id, is_new = found_or_made(self._connection, tables.Inspection, key, **facts)
        if is_new and inspection.explanation is not None and maps is not None:
            self._explanation(inspection_id, inspection.explanation, maps)
        return RecordedInspection(inspection_id, is_new)

    def _once(self, table: Any, key: Mapping[str, Any], /, **others: Any) -> int:
        name = (table, *key.values())
        if name not in self._known:
            self._known[name] = found_or_made(self._connection, table, key, **others)[0]
        return int(self._known[name])

    def _model(self, fingerprint: str) -> tuple[int, str]:
        if ("model", fingerprint) not in self._known:
            query = select(tables.Model.id, tables.Model.status).where(tables.Model.fingerprint == fingerprint)
            row = self._connection.execute(query).one_or_none()
            if row is None:
                raise StoreError(f"no model with fingerprint {fingerprint}", remedy="register the bundle first")
            self._known["model", fingerprint] = (row.id, row.status)
        found: tuple[int, str] = self._known["model", fingerprint]
        return found

    def _policy(self, version: str) -> int:
        if ("policy", version) not in self._known:
            number, is_new = found_or_made(
                self._connection, tables.Policy, {"version": version}, registered_at=self._now
            )
            self._known["policy", version] = number
            if is_new:
                self.new_policies.append(number)
        return int(self._known["policy", version])

    def _run(self, run_id: str) -> int:
        if ("run", run_id) not in self._known:
            row = self._connection.execute(select(tables.Run.id).where(tables.Run.run_id == run_id)).scalar()
            if row is None:
                raise StoreError(f"no run {run_id!r}", remedy="begin the run before recording under it")
            self._known["run", run_id] = row
        return int(self._known["run", run_id])

    def _capture(self, capture: Capture) -> int:
        product_id = self._once(tables.Product, {"name": capture.part.product})
        lot_id = self._once(tables.Lot, {"product_id": product_id, "code": capture.part.lot})
        part_id = self._once(tables.Part, {"lot_id": lot_id, "serial": capture.part.serial})
        facts = {field.name: getattr(capture, field.name) for field in dataclasses.fields(capture)}
        sha256 = facts.pop("sha256")
        del facts["part"]
        return self._once(tables.Capture, {"sha256": sha256}, part_id=part_id, **facts)

    def _explanation(self, inspection_id: int, explanation: Explanation, maps: EncodedMaps) -> None:
        blob_ids = self._blobs(maps.all())
        columns = _explanation_facts(explanation)
        columns |= {"inspection_id": inspection_id, "fused_blob_id": blob_ids[maps.fused.sha256]}
        made = self._connection.execute(
            inserting(self._connection, tables.Explanation).values(**columns).returning(tables.Explanation.id)
        )
        explanation_id = int(made.scalar_one())
        regions = [
            {"explanation_id": explanation_id, "position": position, **dataclasses.asdict(region)}
            for position, region in enumerate(explanation.regions)
        ]
        self._many(tables.ExplanationRegion, regions)
        self._many(tables.ExplanationTile, _tile_rows(explanation_id, explanation))
        sums = {place: blob_ids[blob.sha256] for place, blob in maps.sums.items()}
        self._many(tables.BlockMap, _block_rows(explanation_id, explanation, sums))

    def _blobs(self, blobs: Sequence[Blob]) -> dict[str, int]:
        statement = inserting(self._connection, tables.MapBlob)
        # A row that retention emptied, or that points to the blob store, is filled again; the content is the same.
        statement = statement.on_conflict_do_update(
            index_elements=["sha256"],
            set_={"data": statement.excluded.data, "deleted_at": None},
            where=tables.MapBlob.data.is_(None),
        )
        names = [blob.sha256 for blob in blobs]
        query = select(tables.MapBlob.sha256, tables.MapBlob.id).where(tables.MapBlob.sha256.in_(names))
        if self._blob_store is not None:
            # Retention may just have removed a file whose row is here: no other writer does so from now on.
            known = {row.sha256 for row in self._connection.execute(query)}
            for blob in blobs:
                if blob.sha256 in known:
                    self._blob_store.put(blob.sha256, blob.data)
        is_here = self._blob_store is None
        self._connection.execute(statement, [_blob_row(blob, is_here=is_here) for blob in blobs])
        return {row.sha256: row.id for row in self._connection.execute(query)}

    def _many(self, table: type[tables.Base], rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._connection.execute(inserting(self._connection, table), rows)


def numbers_in(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON takes them: None stands for NaN and infinities."""
    return {name: finite(value) for name, value in values.items()}


def finite(value: float) -> float | None:
    """A number as a column takes it: None stands for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def _facts(inspection: Inspection) -> dict[str, Any]:
    verdict, prediction, failure = inspection.verdict, inspection.prediction, inspection.failure
    return {
        "inspected_at": inspection.inspected_at,
        "verdict": verdict.code.value,
        "reason": verdict.reason.value,
        "label": verdict.label,
        "score": float(verdict.score),
        "threshold": float(verdict.threshold),
        "predicted_label": prediction.label if prediction else None,
        "predicted_score": finite(prediction.score) if prediction else None,
        "margin": finite(prediction.margin) if prediction else None,
        "worst_tile": prediction.tile if prediction else None,
        "scores": [finite(score) for score in prediction.scores] if prediction else None,
        "explained_because": inspection.explained_because,
        "failure_kind": failure.kind if failure else "",
        "failure_message": failure.message if failure else "",
        "duration_ms": float(inspection.duration_ms),
    }


def _explanation_facts(explanation: Explanation) -> dict[str, Any]:
    settings = explanation.settings
    energy = explanation.faithfulness.get("energy_in_roi", math.nan)
    return {
        "status": explanation.status.value,
        "method": settings.method.value,
        "target": settings.target,
        "against": settings.against,
        "mu": float(settings.mu),
        "baseline": settings.baseline.value,
        "settings": dataclasses.asdict(settings),
        "passes": int(explanation.passes),
        "provider": explanation.provider,
        "duration_ms": float(explanation.duration_ms),
        "timings_ms": numbers_in(explanation.timings_ms),
        "notes": list(explanation.notes),
        "faithfulness": numbers_in(explanation.faithfulness),
        "support_share": float(np.count_nonzero(explanation.fused > 0) / max(1, explanation.fused.size)),
        "energy_in_roi": finite(energy),
    }


def _tile_rows(explanation_id: int, explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "explanation_id": explanation_id,
            "position": position,
            "tile_index": part.tile.index,
            "top_px": part.tile.top_px,
            "left_px": part.tile.left_px,
            "height_px": part.tile.height_px,
            "width_px": part.tile.width_px,
            "status": part.status.value,
            "scores": [finite(score) for score in part.scores],
            "baseline_score": finite(part.baseline_score),
            "score_spread": finite(part.score_spread),
        }
        for position, part in enumerate(explanation.tiles)
    ]


def _block_rows(
    explanation_id: int, explanation: Explanation, sums: Mapping[tuple[int, int], int]
) -> list[dict[str, Any]]:
    return [
        {
            "explanation_id": explanation_id,
            "tile_position": row,
            "position": position,
            "tensor": block.tensor,
            "channels": int(block.channels),
            "positive": int(block.positive),
            "kept": int(block.kept),
            "constant": int(block.constant),
            "beta": finite(block.beta),
            "threshold": finite(block.threshold),
            "score_min": finite(block.score_min),
            "score_max": finite(block.score_max),
            "otsu": None if block.otsu is None else finite(block.otsu),
            "note": block.note,
            "predicted": int(block.predicted),
            "sums_blob_id": sums.get((row, position)),
        }
        for row, tile in enumerate(explanation.tiles)
        for position, block in enumerate(tile.blocks)
    ]


def _blob_row(blob: Blob, *, is_here: bool) -> dict[str, Any]:
    return {
        "sha256": blob.sha256,
        "codec": blob.codec,
        "dtype": blob.dtype,
        "precision": blob.precision.value,
        "shape": list(blob.shape),
        "size_bytes": len(blob.data),
        "data": blob.data if is_here else None,
    }
