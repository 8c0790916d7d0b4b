"""Writing inspections as rows. Maps are encoded before the transaction, so that it stays short."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, bindparam, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from inspect_xai.errors import StoreError
from inspect_xai.records import Capture, Explanation, ImageStatistics, Inspection
from inspect_xai.storage import tables
from inspect_xai.storage.blob_store import BlobStore
from inspect_xai.storage.ledger_documents import chunks
from inspect_xai.storage.map_codec import Blob, Precision, encode
from inspect_xai.storage.results import FAITHFULNESS, RecordedInspection
from inspect_xai.storage.types import sanitize_text

Key = tuple[Any, ...]
_CAPTURE: Final = tuple(field.name for field in dataclasses.fields(Capture) if field.name != "part")


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
        (row, position): encode(block.sums, precision=Precision.STEPS12)
        for row, tile in enumerate(explanation.tiles)
        for position, block in enumerate(tile.blocks)
        if block.sums is not None
    }
    return EncodedMaps(encode(explanation.fused, precision=Precision.STEPS12), sums)


def upsert(connection: Connection, table: type[tables.Base]) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that takes ON CONFLICT, which both databases support."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def get_or_create(connection: Connection, table: Any, key: Mapping[str, Any], /, **others: Any) -> tuple[int, bool]:
    """Return the id of the row with this unique key, inserted if absent, and whether it was inserted."""
    ids, made = get_or_create_all(connection, table, tuple(key), [{**key, **others}])
    number = ids[_key(*key.values())]
    return number, number in made


def get_or_create_all(
    connection: Connection, table: type[tables.Base], key: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[Key, int], set[int]]:
    """Return the ids of rows by their unique keys; insert those that are absent.

    To be called while writing (`Database.write`), when no other writer is beside us. So asking first is safe, and
    plain INSERTs do: SQLAlchemy compiles one with ON CONFLICT again each time, which took most of recording.

    Args:
        connection: In a writing transaction.
        table: With whole-number ids.
        key: Columns of a unique constraint.
        rows: All columns of each; of rows with the same key the first is made.

    Returns:
        The ids by key, and which of them were made.
    """
    wanted: dict[Key, Mapping[str, Any]] = {}
    for row in rows:
        wanted.setdefault(_key(*(row[name] for name in key)), row)
    found = _ids(connection, table, key, wanted)
    missing = [each for each in wanted if each not in found]
    _insert(connection, table, [wanted[each] for each in missing])
    made = _ids(connection, table, key, missing)
    return found | made, set(made.values())


def _key(*values: Any) -> Key:
    """Values as the database gives them back."""
    return tuple(sanitize_text(value) if isinstance(value, str) else value for value in values)


def _ids(connection: Connection, table: type[tables.Base], key: Sequence[str], keys: Collection[Key]) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for chunk in chunks(keys):
        wanted = [each[0] for each in chunk] if len(key) == 1 else chunk
        rows = connection.execute(_asking_ids(table, tuple(key)), {"wanted": wanted})
        found |= {tuple(row[1:]): int(row[0]) for row in rows}
    return found


@lru_cache(maxsize=32)
def _asking_ids(table: type[tables.Base], key: tuple[str, ...]) -> Select[Any]:
    """Build the statement once: building it takes longer than running it."""
    columns = table.__table__.columns
    named = [columns[name] for name in key]
    told: ColumnElement[Any] = named[0] if len(named) == 1 else tuple_(*named)
    return select(columns["id"], *named).where(told.in_(bindparam("wanted", expanding=True)))


def _insert(connection: Connection, table: type[tables.Base], rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(insert(table), rows)


class Recorder:
    """Writes a chunk of inspections in one open transaction, table by table: statements cost more than rows."""

    def __init__(self, connection: Connection, now: datetime, *, blobs: BlobStore | None = None) -> None:
        self._connection = connection
        self._blob_store = blobs
        self._now = now
        self.new_policies: list[int] = []

    def record(self, inspections: Sequence[Inspection], maps: Sequence[EncodedMaps | None]) -> list[RecordedInspection]:
        """Write the inspections with all that belongs to them, but those that stand there already."""
        key = ("capture_id", "model_id", "policy_id")
        rows = self._rows(inspections)
        ids, made = get_or_create_all(self._connection, tables.InspectionRow, key, rows)
        recorded = []
        explained: list[tuple[int, Explanation, EncodedMaps]] = []
        signals: list[dict[str, Any]] = []
        for inspection, row, encoded in zip(inspections, rows, maps, strict=True):
            number = ids[tuple(row[name] for name in key)]
            is_new = number in made
            made.discard(number)  # the same picture twice in a chunk is new once
            recorded.append(RecordedInspection(number, is_new))
            if is_new and inspection.image_statistics is not None:
                signals.append({"inspection_id": number} | _signal_facts(inspection, inspection.image_statistics))
            if is_new and inspection.explanation is not None and encoded is not None:
                explained.append((number, inspection.explanation, encoded))
        if explained:
            self._explanations(explained)
        _insert(self._connection, tables.ImageStatisticsRow, signals)
        return recorded

    def _rows(self, inspections: Sequence[Inspection]) -> list[dict[str, Any]]:
        models = self._models({each.fingerprint for each in inspections})
        runs = _ids(self._connection, tables.RunRow, ("run_id",), {_key(each.run_id) for each in inspections})
        captures = self._captures([each.capture for each in inspections])
        versions = [{"version": each.policy_version, "registered_at": self._now} for each in inspections]
        policies, new = get_or_create_all(self._connection, tables.Policy, ("version",), versions)
        self.new_policies = sorted(new)
        rows = []
        for each in inspections:
            run_id = runs.get(_key(each.run_id))
            if run_id is None:
                raise StoreError(f"no run {each.run_id!r}", remedy="begin the run before recording under it")
            model_id, model_status = models[each.fingerprint]
            row = _facts(each) | {"model_id": model_id, "model_status": model_status, "run_id": run_id}
            row |= {"capture_id": captures[_key(each.capture.sha256)], "policy_id": policies[_key(each.policy_version)]}
            rows.append(row | {"recorded_at": self._now})
        return rows

    def _models(self, fingerprints: AbstractSet[str]) -> dict[str, tuple[int, str]]:
        query = select(tables.Model.fingerprint, tables.Model.id, tables.Model.status)
        rows = self._connection.execute(query.where(tables.Model.fingerprint.in_(fingerprints)))
        found = {row.fingerprint: (row.id, row.status) for row in rows}
        for missing in fingerprints - found.keys():
            raise StoreError(f"no model with fingerprint {missing}", remedy="register the bundle first")
        return found

    def _captures(self, captures: Sequence[Capture]) -> dict[Key, int]:
        made, parts = partial(get_or_create_all, self._connection), [each.part for each in captures]
        products, _ = made(tables.Product, ("name",), [{"name": part.product} for part in parts])
        rows = [{"product_id": products[_key(part.product)], "code": part.lot} for part in parts]
        lots, _ = made(tables.Lot, ("product_id", "code"), rows)
        rows = [{"lot_id": lots[_key(products[_key(part.product)], part.lot)], "serial": part.serial} for part in parts]
        numbers, _ = made(tables.PartRow, ("lot_id", "serial"), rows)
        rows = [
            {name: getattr(each, name) for name in _CAPTURE} | {"part_id": numbers[_key(row["lot_id"], row["serial"])]}
            for each, row in zip(captures, rows, strict=True)
        ]
        return made(tables.CaptureRow, ("sha256",), rows)[0]

    def _explanations(self, explained: Sequence[tuple[int, Explanation, EncodedMaps]]) -> None:
        blobs = self._blobs({blob.sha256: blob for *_, encoded in explained for blob in encoded.all()})
        rows = [
            _explanation_facts(explanation) | {"inspection_id": number, "fused_blob_id": blobs[encoded.fused.sha256]}
            for number, explanation, encoded in explained
        ]
        _insert(self._connection, tables.ExplanationRow, rows)
        ids = _ids(self._connection, tables.ExplanationRow, ("inspection_id",), [(number,) for number, *_ in explained])
        regions, windows, blocks = [], [], []
        for number, explanation, encoded in explained:
            explanation_id = ids[number,]
            regions += [
                {"explanation_id": explanation_id, "position": position, **dataclasses.asdict(region)}
                for position, region in enumerate(explanation.regions)
            ]
            windows += _tile_rows(explanation_id, explanation)
            sums = {place: blobs[blob.sha256] for place, blob in encoded.sums.items()}
            blocks += _block_rows(explanation_id, explanation, sums)
        _insert(self._connection, tables.ExplanationRegion, regions)
        _insert(self._connection, tables.ExplanationTile, windows)
        _insert(self._connection, tables.BlockMapRow, blocks)

    def _blobs(self, blobs: Mapping[str, Blob]) -> dict[str, int]:
        """Return the ids of map rows by hash; insert absent ones, fill again those that retention emptied."""
        is_here = self._blob_store is None
        known: dict[str, int] = {}
        kept: set[str] = set()
        query = select(
            tables.MapBlob.sha256,
            tables.MapBlob.id,
            tables.MapBlob.deleted_at,
            tables.MapBlob.data.is_(None).label("is_empty"),
        )
        fill = update(tables.MapBlob.__table__).where(tables.MapBlob.id == bindparam("number"))
        for chunk in chunks(blobs):
            rows = self._connection.execute(query.where(tables.MapBlob.sha256.in_(chunk))).all()
            known |= {row.sha256: row.id for row in rows}
            kept |= {row.sha256 for row in rows if row.deleted_at is None}
            filled = [
                {"number": row.id, "data": blobs[row.sha256].data if is_here else None, "deleted_at": None}
                for row in rows
                if row.is_empty
            ]
            if filled:
                self._connection.execute(fill, filled)
        if self._blob_store is not None:
            # Retention may have removed a file since it was put, unless a row keeps it; nobody does from now on.
            for sha256 in blobs.keys() - kept:
                self._blob_store.ensure(sha256, blobs[sha256].data)
        missing = [_blob_row(blob, is_here=is_here) for sha256, blob in blobs.items() if sha256 not in known]
        _insert(self._connection, tables.MapBlob, missing)
        made = _ids(self._connection, tables.MapBlob, ("sha256",), [(row["sha256"],) for row in missing])
        return known | {key[0]: number for key, number in made.items()}


def numbers_in(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as JSON takes them: None for NaN and infinities."""
    return {name: finite(value) for name, value in values.items()}


def finite(value: float) -> float | None:
    """Return a number as a column takes it: None for NaN and infinities."""
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
        "explain_reason": inspection.explain_reason,
        "failure_kind": failure.kind if failure else "",
        "failure_message": failure.message if failure else "",
        "duration_ms": float(inspection.duration_ms),
    }


def _signal_facts(inspection: Inspection, signal: ImageStatistics) -> dict[str, Any]:
    seen = inspection.explanation.embedding if inspection.explanation else ()
    packed = np.asarray(seen, dtype="<f4")
    return dataclasses.asdict(signal) | {"embedding": packed.tobytes() if np.isfinite(packed).all() and seen else None}


def _explanation_facts(explanation: Explanation) -> dict[str, Any]:
    settings = explanation.settings
    measured = numbers_in(explanation.faithfulness)
    passes = measured.get("passes")
    return {
        "status": explanation.status.value,
        "method": settings.method.value,
        "target": settings.target,
        "contrast_label": settings.against,
        "mu": float(settings.mu),
        "baseline": settings.baseline.value,
        "settings": dataclasses.asdict(settings),
        "forward_passes": int(explanation.forward_passes),
        "provider": explanation.provider,
        "duration_ms": float(explanation.duration_ms),
        "timings_ms": numbers_in(explanation.timings_ms),
        "notes": list(explanation.notes),
        "faithfulness": measured,
        "coverage": explanation.coverage,
        **{name: measured.get(name) for name in ("energy_in_roi", *FAITHFULNESS)},
        "faithfulness_passes": None if passes is None else int(passes),
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
            "positive_channels": int(block.positive_channels),
            "kept_channels": int(block.kept_channels),
            "constant_channels": int(block.constant_channels),
            "beta": finite(block.beta),
            "threshold": finite(block.threshold),
            "score_min": finite(block.score_min),
            "score_max": finite(block.score_max),
            "otsu_threshold": None if block.otsu_threshold is None else finite(block.otsu_threshold),
            "note": block.note,
            "predicted_scores": int(block.predicted_scores),
            "grid": None if block.grid is None else dataclasses.asdict(block.grid),
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
