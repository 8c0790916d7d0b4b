"""Rows as plain documents, the form for the ledger's digests and for exported evidence.

A document leaves out what is NULL, and a count that a later revision added where it is 0. So the new column changes no
document of the rows that were there before, and their digests still hold. What came late into a document
(`former_of`) leaves the digests that were taken before vouching for the rest. Columns that got another name with
revision 0015 keep their first one in a document (`records.document_key`, the only place that maps them), for the same
reason; so do the kinds of rows below: an event of a study's rating calls it "study_answer".
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute

from inspect_xai.records import document_key
from inspect_xai.storage import tables
from inspect_xai.storage.types import UtcTime

Document = dict[str, Any]
Key = TypeVar("Key")
# As `types.canonical` spells; a NaN that raw SQL wrote is spelled too, and so found to be another value.
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_MOST_DIGITS: Final = 19  # of a number that a column can hold
_CHUNK: Final = 500  # databases bound the number of parameters of a statement

# Kinds of rows an event can vouch for, by the name it calls them.
VOUCHED: Final[dict[str, type[tables.Base]]] = {
    "inspection": tables.InspectionRow,
    "review": tables.ReviewRow,
    "model": tables.Model,
    "policy": tables.Policy,
    "retention_rule": tables.RetentionRule,
    "legal_hold": tables.LegalHold,
    "audit": tables.Audit,
    "reason_code": tables.ReasonCode,
    "study": tables.StudyRow,
    "study_answer": tables.StudyRatingRow,
    "drift_baseline": tables.DriftBaselineRow,
    "alert_sent": tables.AlertSent,
}

RowKey = int | str
"""What names a row of a kind: its id; of an alert that was sent its channel, a slash and the alert's own id."""

_ALERT: Final = "alert_sent"


def digests(connection: Connection, kind: str, ids: Collection[RowKey], *, former: bool = False) -> dict[RowKey, str]:
    """Return the sha256 of these rows' documents, or of their `former` ones; absent rows are left out."""
    found = documents(connection, kind, ids)
    if former:
        found = {number: former_of(kind, document) for number, document in found.items()}
    runs: dict[int, str] = {}
    return {number: hashlib.sha256(_spelled(document, runs)).hexdigest() for number, document in found.items()}


def former_of(kind: str, document: Document) -> Document:
    """Return a document in the form that an earlier event may have hashed.

    An inspection's held nothing of what is watched for drift; a policy's nothing of its content, when a verdict named
    its version first.
    """
    later = {"inspection": "signal", "policy": "content"}.get(kind)
    return {name: value for name, value in document.items() if name != later}


def keys_of(connection: Connection, kind: str) -> Iterator[RowKey]:
    """Yield the key of each row of a kind."""
    columns = VOUCHED[kind].__table__.columns
    if kind == _ALERT:
        for channel, alert_id in connection.execute(select(columns["channel"], columns["alert_id"])):
            yield alert_key(channel, alert_id)
    else:
        yield from connection.execute(select(columns["id"])).scalars()


def alert_key(channel: str, alert_id: str) -> str:
    """Return the key of a sent alert; no channel has a slash in its name."""
    return f"{channel}/{alert_id}"


def key_of(kind: str, words: str) -> RowKey | None:
    """Parse a row's key from an event's "kind/key"; None: it is no key."""
    if kind == _ALERT:
        return words
    return int(words) if words.isascii() and words.isdecimal() and len(words) < _MOST_DIGITS else None


def _spelled(document: Document, runs: dict[int, str]) -> bytes:
    """`canonical` for a document out of the database, in a third of its time: nothing in it needs to be made plain.

    The run of a thousand inspections is one object, spelled once; `runs` keeps it by that object's id.
    """
    run = document.get("run")
    if run is None:
        return _ENCODER.encode(document).encode()
    words = runs.get(id(run)) or runs.setdefault(id(run), _ENCODER.encode(run))
    before = _ENCODER.encode({name: value for name, value in document.items() if name < "run"})
    after = _ENCODER.encode({name: value for name, value in document.items() if name > "run"})
    return f'{before[:-1]},"run":{words},{after[1:]}'.encode()


def documents(connection: Connection, kind: str, ids: Collection[RowKey]) -> dict[RowKey, Document]:
    """Return the documents of these rows by id; an inspection's holds all that belongs to it but the reviews.

    What a row refers to and is not there is left out or None: no digest was ever taken of such a document.
    """
    found: dict[RowKey, Document] = {}
    for chunk in chunks(ids):
        found |= _alerts(connection, chunk) if kind == _ALERT else _numbered(connection, kind, chunk)  # type: ignore[arg-type]
    return found


def _numbered(connection: Connection, kind: str, ids: Sequence[int]) -> dict[int, Document]:
    if kind == "inspection":
        return _inspections(connection, ids)
    rows = {row["id"]: row for row in _rows(connection, VOUCHED[kind], "id", ids)}
    if kind == "study":
        _add_tasks(connection, rows)
    if kind == "drift_baseline":
        for row in rows.values():
            row["content_sha256"] = hashlib.sha256(row.pop("content", b"")).hexdigest()
    return rows


def _add_tasks(connection: Connection, studies: Mapping[int, Document]) -> None:
    """Add the parts of studies to their documents, and each appraiser's order of them in each trial."""
    for name, table in (("parts", tables.StudyPart), ("tasks", tables.StudyTask)):
        for document in studies.values():
            document[name] = []
        for row in _rows(connection, table, "study_id", list(studies)):
            studies[row.pop("study_id")][name].append(row)


def _alerts(connection: Connection, keys: Collection[str]) -> dict[str, Document]:
    alert_id = tables.AlertSent.alert_id
    rows = _told(
        connection,
        tables.AlertSent,
        select(tables.AlertSent.__table__).where(alert_id.in_({key.partition("/")[2] for key in keys})),
        {},
    )
    found = {alert_key(row["channel"], row["alert_id"]): row for row in rows}
    return {key: found[key] for key in keys if key in found}


def chunks(ids: Iterable[Key]) -> list[list[Key]]:
    """Ids or names in groups that one statement takes."""
    every = list(ids)
    return [every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)]


def _inspections(connection: Connection, ids: Sequence[int]) -> dict[int, Document]:
    rows = _rows(connection, tables.InspectionRow, "id", ids)
    captures = _captures(connection, _numbers(rows, "capture_id"))
    explanations = _explanations(connection, ids)
    signals = _signals(connection, ids)
    models = _names(connection, tables.Model, "fingerprint", _numbers(rows, "model_id"))
    policies = _names(connection, tables.Policy, "version", _numbers(rows, "policy_id"))
    runs = _by_id(_rows(connection, tables.RunRow, "id", _numbers(rows, "run_id")))
    for row in rows:
        row["capture"] = captures.get(row.pop("capture_id", 0))
        row["model"] = models.get(row.pop("model_id", 0))
        row["policy"] = policies.get(row.pop("policy_id", 0))
        row["run"] = runs.get(row.pop("run_id", 0))
        if row["id"] in explanations:
            row["explanation"] = explanations[row["id"]]
        if row["id"] in signals:
            row["signal"] = signals[row["id"]]
    return {row["id"]: row for row in rows}


def _captures(connection: Connection, ids: Collection[int]) -> dict[int, Document]:
    rows = _by_id(_rows(connection, tables.CaptureRow, "id", ids))
    for number, serial, lot, product in connection.execute(_asking_parts(), {"among": list(ids)}).all():
        document = rows[number]
        document["part"] = {"serial": serial, "lot": lot, "product": product}
        for name in (
            "part_id",
            "picture_deleted_at",
            "picture_going_at",
        ):  # when the picture goes, what was said of it stays the same
            document.pop(name, None)
    return rows


@cache
def _asking_parts() -> Select[tuple[int, str, str, str]]:
    return parts_by(tables.CaptureRow.id).where(_among(tables.CaptureRow.id))


def parts_by(column: InstrumentedAttribute[Key]) -> Select[tuple[Key, str, str, str]]:
    """Select a column of captures with serial, lot and product of the part they show."""
    return tables.join_parts(
        select(column, tables.PartRow.serial, tables.Lot.code, tables.Product.name).select_from(tables.CaptureRow)
    )


def _explanations(connection: Connection, inspection_ids: Sequence[int]) -> dict[int, Document]:
    rows = _rows(connection, tables.ExplanationRow, "inspection_id", inspection_ids)
    ids = [row.pop("id") for row in rows]
    regions = _children(connection, tables.ExplanationRegion, ids)
    tiles = _children(connection, tables.ExplanationTile, ids)
    blocks = _children(connection, tables.BlockMapRow, ids)
    blob_ids = _numbers(rows, "fused_blob_id")
    blob_ids |= {block["sums_blob_id"] for each in blocks.values() for block in each if "sums_blob_id" in block}
    shas: dict[int, str] = {}
    for chunk in chunks(blob_ids):
        shas |= _names(connection, tables.MapBlob, "sha256", chunk)
    found = {}
    for number, row in zip(ids, rows, strict=True):
        for block in blocks[number]:
            if block.get("predicted") == 0:  # added by revision 0005
                del block["predicted"]
            if "sums_blob_id" in block:
                block["sums_sha256"] = shas.get(block.pop("sums_blob_id"))
        row["fused_sha256"] = shas.get(row.pop("fused_blob_id", 0))
        found[row.pop("inspection_id")] = row | {
            "regions": regions[number],
            "tiles": tiles[number],
            "blocks": blocks[number],
        }
    return found


def _signals(connection: Connection, inspection_ids: Sequence[int]) -> dict[int, Document]:
    """Image statistics by inspection, and the embedding of an explained one as hexadecimal digits."""
    rows = _rows(connection, tables.ImageStatisticsRow, "inspection_id", inspection_ids)
    for row in rows:
        if "embedding" in row:
            row["embedding"] = bytes(row["embedding"]).hex()
    return {row.pop("inspection_id"): row for row in rows}


def _children(connection: Connection, table: type[tables.Base], ids: Collection[int]) -> dict[int, list[Document]]:
    found: dict[int, list[Document]] = defaultdict(list)
    for row in _rows(connection, table, "explanation_id", ids):
        found[row.pop("explanation_id")].append(row)
    return found


def _rows(connection: Connection, table: type[tables.Base], name: str, ids: Collection[int]) -> list[Document]:
    """Read the rows in which a column holds one of these numbers, in the order of their keys."""
    return _told(connection, table, _asking_rows(table, name), {"among": list(ids)})


def _told(
    connection: Connection, table: type[tables.Base], query: Select[Any], values: Mapping[str, Any]
) -> list[Document]:
    """Run a query for rows of a table; what is NULL is left out."""
    names = [document_key(column.name) for column in table.__table__.columns]
    moments = [column.name for column in table.__table__.columns if isinstance(column.type, UtcTime)]
    found = []
    for row in connection.execute(query, values).all():
        document = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for name in moments:
            if name in document:
                document[name] = document[name].isoformat(timespec="microseconds")
        found.append(document)
    return found


@cache
def _asking_rows(table: type[tables.Base], name: str) -> Select[Any]:
    """Build the statement once: building it takes longer than running it."""
    order = table.__table__.primary_key.columns
    return select(table.__table__).where(_among(_column(table, name))).order_by(*order)


def _numbers(rows: Iterable[Document], name: str) -> set[int]:
    return {row[name] for row in rows if name in row}


def _by_id(rows: Iterable[Document]) -> dict[int, Document]:
    return {row.pop("id"): row for row in rows}


def _names(connection: Connection, table: type[tables.Base], name: str, ids: Collection[int]) -> dict[int, str]:
    return {row[0]: row[1] for row in connection.execute(_asking_names(table, name), {"among": list(ids)}).all()}


@cache
def _asking_names(table: type[tables.Base], name: str) -> Select[Any]:
    number = _column(table, "id")
    return select(number, _column(table, name)).where(_among(number))


def _column(table: type[tables.Base], name: str) -> ColumnElement[Any]:
    found: ColumnElement[Any] = table.__table__.columns[name]
    return found


def _among(column: Any) -> ColumnElement[bool]:
    """Return whether a column holds one of the numbers, as literals: 500 parameters take longer than the rows."""
    wanted: BindParameter[Any] = bindparam("among", expanding=True, literal_execute=True)
    found: ColumnElement[bool] = column.in_(wanted)
    return found
