"""Reading rows as records; each function is called inside the store's transaction."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, ColumnElement, Connection, Row, Select, bindparam, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from inspect_xai import records
from inspect_xai.errors import NotFoundError
from inspect_xai.storage import results, tables
from inspect_xai.storage.ledger_documents import chunks
from inspect_xai.storage.map_codec import decode
from inspect_xai.storage.tables import (
    CaptureRow,
    ExplanationRow,
    InspectionRow,
    Lot,
    MapBlob,
    Model,
    PartRow,
    Policy,
    Product,
    ReviewRow,
    RunRow,
)

FetchMap = Callable[[str], bytes]
"""Gets the bytes of a map that is not in the database, by its sha256."""

# Statements are made once: to make one, and to find it among those compiled before, costs more than to run it.
_WANTED: Final[BindParameter[Any]] = bindparam("wanted", expanding=True)
_NEWER = aliased(ReviewRow)
_REGION: Final = tuple(field.name for field in dataclasses.fields(records.Region))
_REVIEW: Final = tuple(
    field.name
    for field in dataclasses.fields(results.StoredReview)
    if field.name not in ("review_id", "superseded", "blind", "box")
)


def _newest(said: Any) -> ColumnElement[Any]:
    """Select a column of an inspection's newest review; row by row, which an index answers for a page."""
    newest = select(said).where(_NEWER.inspection_id == InspectionRow.id).order_by(_NEWER.id.desc()).limit(1)
    return func.coalesce(newest.correlate(InspectionRow).scalar_subquery(), "")


_SUMMARY: dict[str, Any] = {
    "inspection_id": InspectionRow.id,
    "sha256": CaptureRow.sha256,
    "file_name": CaptureRow.file_name,
    "archived_to": CaptureRow.archived_to,
    "serial": PartRow.serial,
    "product": Product.name,
    "lot": Lot.code,
    "line": CaptureRow.line,
    "station": CaptureRow.station,
    "camera": CaptureRow.camera,
    "view": CaptureRow.view,
    "shift": CaptureRow.shift,
    "captured_at": CaptureRow.captured_at,
    "inspected_at": InspectionRow.inspected_at,
    "verdict": InspectionRow.verdict,
    "reason": InspectionRow.reason,
    "label": InspectionRow.label,
    "score": InspectionRow.score,
    "threshold": InspectionRow.threshold,
    "predicted_label": func.coalesce(InspectionRow.predicted_label, ""),
    "predicted_score": func.coalesce(InspectionRow.predicted_score, 0.0),
    "fingerprint": Model.fingerprint,
    "model_name": Model.name,
    "model_version": Model.version,
    "model_status": InspectionRow.model_status,
    "policy_version": Policy.version,
    "run_id": RunRow.run_id,
    "provider": RunRow.provider,
    "explained_because": InspectionRow.explain_reason,
    "explanation_status": func.coalesce(ExplanationRow.status, ""),
    "passes": func.coalesce(ExplanationRow.forward_passes, 0),
    "support_share": func.coalesce(ExplanationRow.coverage, 0.0),
    **{name: getattr(ExplanationRow, name) for name in results.FAITHFULNESS},
    "failure_kind": InspectionRow.failure_kind,
    "failure_message": InspectionRow.failure_message,
    "duration_ms": InspectionRow.duration_ms,
    "review_decision": _newest(_NEWER.decision),
    "reviewed_verdict": _newest(_NEWER.verdict),
}


@cache
def summaries() -> Select[Any]:
    """SELECT of what an `InspectionSummary` holds, to be narrowed by the caller."""
    query = select(*(column.label(name) for name, column in _SUMMARY.items())).select_from(InspectionRow)
    return (
        tables.join_parts(query.join(CaptureRow, CaptureRow.id == InspectionRow.capture_id))
        .join(Model, Model.id == InspectionRow.model_id)
        .join(Policy, Policy.id == InspectionRow.policy_id)
        .join(RunRow, RunRow.id == InspectionRow.run_id)
        .outerjoin(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id)
    )


@cache
def summaries_wanted() -> Select[Any]:
    """`summaries` of the inspections whose ids are given as `wanted`."""
    return summaries().where(InspectionRow.id.in_(_WANTED))


def summary(row: Row[Any]) -> results.InspectionSummary:
    """One row of `summaries`."""
    return results.InspectionSummary(*row)


def column(name: str) -> ColumnElement[Any] | InstrumentedAttribute[Any]:
    """Return the column behind a field of `InspectionSummary`."""
    found: ColumnElement[Any] | InstrumentedAttribute[Any] = _SUMMARY[name]
    return found


def stats(
    connection: Connection, start: datetime, end: datetime, *, by: Sequence[str], moment: str
) -> list[results.Stats]:
    """Sum by fields of a summary over the inspections with start <= moment < end."""
    inside = summaries().where(column(moment) >= start, column(moment) < end).subquery("inside").c
    verdict, said = inside.verdict, inside.reviewed_verdict

    def number(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((condition, 1), else_=0))

    sums = {
        "inspections": func.count(),
        "ok": number(verdict == "OK"),
        "ng": number(verdict == "NG"),
        "unsure": number(verdict == "UNSURE"),
        "failed": number(inside.failure_kind != ""),
        "explained": number(inside.explanation_status == "explained"),
        "reviewed": number(inside.review_decision != ""),
        "overkill": number((verdict == "NG") & (said == "OK")),
        "escapes": number((verdict == "OK") & (said == "NG")),
        "passes": func.sum(inside.passes),
        "duration_ms": func.sum(inside.duration_ms),
    }
    groups = [inside[name] for name in by]
    query = select(*groups, *sums.values()).group_by(*groups).order_by(*groups)
    width = len(groups)
    return [
        results.Stats(tuple(row[:width]), **dict(zip(sums, map(_whole, row[width:]), strict=True)))
        for row in connection.execute(query)
    ]


def region_near(row_px: Any, column_px: Any, radius_px: Any) -> ColumnElement[bool]:
    """Return whether the explanation has a region with its middle within the radius of that pixel."""
    region = tables.ExplanationRegion
    down = region.top_px + region.height_px / 2.0 - row_px
    right = region.left_px + region.width_px / 2.0 - column_px
    return (
        select(region.position)
        .where(region.explanation_id == ExplanationRow.id, down * down + right * right <= radius_px * radius_px)
        .correlate(ExplanationRow)
        .exists()
    )


def has_map(sha256: str) -> ColumnElement[bool]:
    """Return whether one of the explanation's stored maps has this hash."""
    blob = select(MapBlob.id).where(MapBlob.sha256 == sha256).scalar_subquery()
    block = select(tables.BlockMapRow.position).where(
        tables.BlockMapRow.explanation_id == ExplanationRow.id, tables.BlockMapRow.sums_blob_id == blob
    )
    return (ExplanationRow.fused_blob_id == blob) | block.correlate(ExplanationRow).exists()


def runs_of_file(connection: Connection, sha256: str) -> list[int]:
    """Return ids of the runs of a model file, by its hash or the hash's beginning; runs are few."""
    rows = connection.execute(select(RunRow.id, RunRow.settings))
    return [row.id for row in rows if sha256 and str(row.settings.get("model_sha256", "")).startswith(sha256)]


def inspections(
    connection: Connection, ids: Sequence[int], fetch: FetchMap | None = None
) -> list[results.StoredInspection]:
    """Inspections with everything that belongs to them, in the order of `ids`; maps where `fetch` is given.

    A few statements for all of them: a part traced over a slow line to the server waits for each one's answer.

    Raises:
        NotFoundError: There is no inspection under one of the ids.
    """
    rows = {row.id: row._mapping for row in _in_chunks(connection, _inspection_rows(), ids)}
    for missing in (number for number in ids if number not in rows):
        raise NotFoundError(f"no inspection {missing}", remedy="list inspections with: inspect-xai find")
    captures = _captures(connection, {row["capture_id"] for row in rows.values()})
    models = {row.id: _model(row) for row in _by_id(connection, Model, {row["model_id"] for row in rows.values()})}
    runs = {row.id: _run(row) for row in _by_id(connection, RunRow, {row["run_id"] for row in rows.values()})}
    explanations = _explanations(connection, ids, fetch)
    answers = _reviews(connection, ids)
    return [
        results.StoredInspection(
            inspection_id=number,
            capture=captures[facts["capture_id"]][0],
            picture_deleted_at=captures[facts["capture_id"]][1],
            model=models[facts["model_id"]],
            model_status=facts["model_status"],
            policy_version=facts["version"],
            run=runs[facts["run_id"]],
            inspected_at=facts["inspected_at"],
            recorded_at=facts["recorded_at"],
            verdict=_verdict(facts),
            prediction=_prediction(facts),
            explanation=explanations.get(number),
            explain_reason=facts["explain_reason"],
            failure=records.Failure(facts["failure_kind"], facts["failure_message"]) if facts["failure_kind"] else None,
            duration_ms=facts["duration_ms"],
            reviews=tuple(answers[number]),
        )
        for number, facts in ((number, rows[number]) for number in ids)
    ]


def model(connection: Connection, condition: ColumnElement[bool]) -> results.StoredModel:
    """One registered model.

    Raises:
        NotFoundError: None meets the condition.
    """
    row = connection.execute(select(Model.__table__).where(condition)).one_or_none()
    if row is None:
        raise NotFoundError("no such model", remedy="list models with: inspect-xai model list")
    return _model(row)


def models(connection: Connection) -> list[results.StoredModel]:
    """List all registered models, newest first."""
    rows = connection.execute(select(Model.__table__).order_by(Model.registered_at.desc(), Model.id.desc()))
    return [_model(row) for row in rows]


def reviews(connection: Connection, inspection_id: int) -> tuple[results.StoredReview, ...]:
    """Return all answers about one inspection, oldest first."""
    return tuple(_reviews(connection, [inspection_id])[inspection_id])


def _reviews(connection: Connection, inspection_ids: Collection[int]) -> dict[int, list[results.StoredReview]]:
    rows = _in_chunks(connection, _review_rows(), inspection_ids)
    superseded = {row.supersedes_id for row in rows}
    found: dict[int, list[results.StoredReview]] = defaultdict(list)
    for row in rows:
        facts = {name: getattr(row, name) for name in _REVIEW}
        facts |= {"blind": bool(row.blind), "box": None if row.box is None else tuple(row.box)}
        review = results.StoredReview(review_id=row.id, superseded=row.id in superseded, **facts)
        found[row.inspection_id].append(review)
    return found


@cache
def _inspection_rows() -> Select[Any]:
    query = select(InspectionRow.__table__, Policy.version).join(Policy, Policy.id == InspectionRow.policy_id)
    return query.where(InspectionRow.id.in_(_WANTED))


@cache
def _review_rows() -> Select[Any]:
    return (
        select(ReviewRow.__table__, func.coalesce(tables.ReasonCode.code, "").label("reason_code"))
        .outerjoin_from(ReviewRow, tables.ReasonCode, tables.ReasonCode.id == ReviewRow.reason_code_id)
        .where(ReviewRow.inspection_id.in_(_WANTED))
        .order_by(ReviewRow.id)
    )


@cache
def _capture_rows() -> Select[Any]:
    columns = (PartRow.serial, Product.name.label("product"), Lot.code.label("lot"))
    query = select(CaptureRow.__table__, *columns).select_from(CaptureRow)
    return tables.join_parts(query).where(CaptureRow.id.in_(_WANTED))


@cache
def _rows_by(column: InstrumentedAttribute[Any]) -> Select[Any]:
    """Select rows by the values of a column, in the order of their primary key."""
    table = column.class_.__table__
    return select(table).where(column.in_(_WANTED)).order_by(*table.primary_key.columns)


@cache
def _blob_rows(*, with_data: bool) -> Select[Any]:
    columns = [MapBlob.id, MapBlob.sha256, MapBlob.size_bytes, MapBlob.deleted_at]
    if with_data:
        columns.append(MapBlob.data)
    return select(*columns).where(MapBlob.id.in_(_WANTED))


def _in_chunks(connection: Connection, query: Select[Any], wanted: Collection[Any]) -> list[Row[Any]]:
    """Rows of a statement that asks for the `wanted`."""
    found: list[Row[Any]] = []
    for chunk in chunks(wanted):
        found += connection.execute(query, {"wanted": chunk}).all()
    return found


def _by_id(connection: Connection, table: type[tables.Base], ids: Collection[int]) -> list[Row[Any]]:
    return _in_chunks(connection, _rows_by(table.id), ids)  # type: ignore[attr-defined]


def _model(row: Row[Any]) -> results.StoredModel:
    return results.StoredModel(
        **{field.name: getattr(row, field.name) for field in dataclasses.fields(results.StoredModel)}
    )


def _captures(connection: Connection, ids: Collection[int]) -> dict[int, tuple[records.Capture, datetime | None]]:
    """Read captures by id, and when retention deleted their pictures."""
    names = [field.name for field in dataclasses.fields(records.Capture) if field.name != "part"]
    return {
        row.id: (
            records.Capture(
                part=records.Part(row.serial, row.product, row.lot), **{name: getattr(row, name) for name in names}
            ),
            row.picture_deleted_at,
        )
        for row in _in_chunks(connection, _capture_rows(), ids)
    }


def _run(row: Row[Any]) -> records.Run:
    return records.Run(row.run_id, row.started_at, row.provider, row.versions, row.settings)


def _verdict(facts: Mapping[Any, Any]) -> records.Verdict:
    return records.Verdict(
        code=records.VerdictCode(facts["verdict"]),
        reason=records.Reason(facts["reason"]),
        label=facts["label"],
        score=facts["score"],
        threshold=facts["threshold"],
    )


def _prediction(facts: Mapping[Any, Any]) -> records.Prediction | None:
    if facts["predicted_label"] is None:
        return None
    return records.Prediction(
        scores=_numbers(facts["scores"]),
        label=facts["predicted_label"],
        score=_number(facts["predicted_score"]),
        margin=_number(facts["margin"]),
        tile=facts["worst_tile"],
    )


def _explanations(
    connection: Connection, inspection_ids: Collection[int], fetch: FetchMap | None
) -> dict[int, results.StoredExplanation]:
    rows = _in_chunks(connection, _rows_by(ExplanationRow.inspection_id), inspection_ids)
    if not rows:
        return {}
    ids = [row.id for row in rows]
    regions = _children(connection, tables.ExplanationRegion, ids)
    windows = _children(connection, tables.ExplanationTile, ids)
    blocks = _children(connection, tables.BlockMapRow, ids)
    blob_ids = {row.fused_blob_id for row in rows}
    blob_ids |= {block.sums_blob_id for each in blocks.values() for block in each} - {None}
    maps = _Maps(connection, blob_ids, fetch)
    found = {}
    for row in rows:
        used = {row.fused_blob_id, *(block.sums_blob_id for block in blocks[row.id])} - {None}
        found[row.inspection_id] = results.StoredExplanation(
            status=records.Status(row.status),
            settings=_settings(row.settings),
            forward_passes=row.forward_passes,
            provider=row.provider,
            timings_ms={name: _number(value) for name, value in row.timings_ms.items()},
            notes=tuple(row.notes),
            faithfulness={name: _number(value) for name, value in row.faithfulness.items()},
            coverage=row.coverage,
            regions=tuple(records.Region(*(getattr(each, name) for name in _REGION)) for each in regions[row.id]),
            tiles=tuple(_tile(each, blocks[row.id], maps) for each in windows[row.id]),
            fused=maps.get(row.fused_blob_id),
            fused_sha256=maps.rows[row.fused_blob_id].sha256,
            sums_sha256=tuple(
                maps.rows[block.sums_blob_id].sha256 for block in blocks[row.id] if block.sums_blob_id is not None
            ),
            map_bytes=sum(maps.rows[number].size_bytes for number in used),
            maps_deleted=any(maps.rows[number].deleted_at is not None for number in used),
            duration_ms=row.duration_ms,
        )
    return found


def _children(connection: Connection, table: Any, explanation_ids: Collection[int]) -> dict[int, list[Row[Any]]]:
    """Rows that belong to explanations, in their order."""
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in _in_chunks(connection, _rows_by(table.explanation_id), explanation_ids):
        found[row.explanation_id].append(row)
    return found


def _tile(row: Row[Any], blocks: Sequence[Row[Any]], maps: "_Maps") -> records.TileExplanation:
    return records.TileExplanation(
        tile=records.Tile(row.tile_index, row.top_px, row.left_px, row.height_px, row.width_px),
        status=records.Status(row.status),
        scores=_numbers(row.scores),
        blocks=tuple(_block(block, maps) for block in blocks if block.tile_position == row.position),
        baseline_score=_number(row.baseline_score),
        score_spread=_number(row.score_spread),
    )


def _block(row: Row[Any], maps: "_Maps") -> records.BlockMap:
    return records.BlockMap(
        tensor=row.tensor,
        channels=row.channels,
        positive_channels=row.positive_channels,
        kept_channels=row.kept_channels,
        constant_channels=row.constant_channels,
        beta=_number(row.beta),
        threshold=_number(row.threshold),
        score_min=_number(row.score_min),
        score_max=_number(row.score_max),
        otsu_threshold=row.otsu_threshold,
        note=row.note,
        predicted_scores=row.predicted_scores,
        grid=None if row.grid is None else records.CellGrid.from_json(row.grid),
        sums=None if row.sums_blob_id is None else maps.get(row.sums_blob_id),
    )


class _Maps:
    """The blobs of explanations by id: what they are always, decoded where they are wanted."""

    def __init__(self, connection: Connection, ids: Collection[int], fetch: FetchMap | None) -> None:
        query = _blob_rows(with_data=fetch is not None)
        self.rows = {row.id: row for row in _in_chunks(connection, query, ids)}
        self._maps: dict[int, NDArray[np.float32]] = {}
        if fetch is not None:
            for row in (row for row in self.rows.values() if row.deleted_at is None):
                data = fetch(row.sha256) if row.data is None else row.data
                self._maps[row.id] = decode(data, sha256=row.sha256)

    def get(self, blob_id: int) -> NDArray[np.float32] | None:
        return self._maps.get(blob_id)


def _settings(document: Mapping[str, Any]) -> records.RecordedSettings:
    known = {field.name for field in dataclasses.fields(records.RecordedSettings)}
    facts = {name: value for name, value in document.items() if name in known}
    facts |= {"method": records.Method(facts["method"]), "baseline": records.Baseline(facts["baseline"])}
    facts["profile"] = records.Profile(facts.get("profile", records.Profile.EXACT))
    return records.RecordedSettings(**facts)


def _whole(value: Any) -> Any:
    """Convert a sum to int: PostgreSQL adds whole numbers up to a Decimal."""
    return int(value) if isinstance(value, Decimal) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: list[float | None]) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)
