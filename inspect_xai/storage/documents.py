"""Rows as plain documents: what the ledger's digests are taken of, and what evidence is exported as.

A document leaves out what is NULL, and a count that a later revision added where it is 0. So the new column changes no
document of the rows that were there before, and their digests still hold. What is watched for drift (`signal`) came
late into the documents: a digest that was taken before is one `without_signal`, and still vouches for the rest.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute

from inspect_xai.storage import tables
from inspect_xai.storage.types import UtcTime

Document = dict[str, Any]
Key = TypeVar("Key")
# As `types.canonical` spells; a NaN that raw SQL wrote is spelled too, and so found to be another value.
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_CHUNK: Final = 500  # databases bound the number of parameters of a statement

# Kinds of rows an event can vouch for, by the name it calls them.
VOUCHED: Final[dict[str, type[tables.Base]]] = {
    "inspection": tables.Inspection,
    "review": tables.Review,
    "model": tables.Model,
    "policy": tables.Policy,
    "retention_rule": tables.RetentionRule,
    "legal_hold": tables.LegalHold,
    "audit": tables.Audit,
}


def digests(connection: Connection, kind: str, ids: Collection[int], *, former: bool = False) -> dict[int, str]:
    """sha256 of the documents of these rows, or of their `former` ones; a row that is not there is left out."""
    found = documents(connection, kind, ids)
    if former:
        found = {number: without_signal(document) for number, document in found.items()}
    runs: dict[int, str] = {}
    return {number: hashlib.sha256(_spelled(document, runs)).hexdigest() for number, document in found.items()}


def without_signal(document: Document) -> Document:
    """A document as it was before it held what is watched for drift."""
    return {name: value for name, value in document.items() if name != "signal"}


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


def documents(connection: Connection, kind: str, ids: Collection[int]) -> dict[int, Document]:
    """The documents of these rows by id. That of an inspection holds all that belongs to it but the reviews."""
    found: dict[int, Document] = {}
    for chunk in chunks(ids):
        if kind == "inspection":
            found |= _inspections(connection, chunk)
        else:
            table = VOUCHED[kind]
            found |= {row["id"]: row for row in _rows(connection, table, "id", chunk)}
    return found


def chunks(ids: Iterable[Key]) -> list[list[Key]]:
    """Ids or names in groups that one statement takes."""
    every = list(ids)
    return [every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)]


def _inspections(connection: Connection, ids: Sequence[int]) -> dict[int, Document]:
    rows = _rows(connection, tables.Inspection, "id", ids)
    captures = _captures(connection, {row["capture_id"] for row in rows})
    explanations = _explanations(connection, ids)
    signals = _signals(connection, ids)
    models = _names(connection, tables.Model, "fingerprint", {row["model_id"] for row in rows})
    policies = _names(connection, tables.Policy, "version", {row["policy_id"] for row in rows})
    runs = _by_id(_rows(connection, tables.Run, "id", {row["run_id"] for row in rows}))
    for row in rows:
        row["capture"] = captures[row.pop("capture_id")]
        row["model"] = models[row.pop("model_id")]
        row["policy"] = policies[row.pop("policy_id")]
        row["run"] = runs[row.pop("run_id")]
        if row["id"] in explanations:
            row["explanation"] = explanations[row["id"]]
        if row["id"] in signals:
            row["signal"] = signals[row["id"]]
    return {row["id"]: row for row in rows}


def _captures(connection: Connection, ids: Collection[int]) -> dict[int, Document]:
    rows = _by_id(_rows(connection, tables.Capture, "id", ids))
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
    return parts_by(tables.Capture.id).where(_among(tables.Capture.id))


def parts_by(column: InstrumentedAttribute[Key]) -> Select[tuple[Key, str, str, str]]:
    """Of captures a column, and serial, lot and product of the part they show."""
    return (
        select(column, tables.Part.serial, tables.Lot.code, tables.Product.name)
        .join(tables.Part, tables.Part.id == tables.Capture.part_id)
        .join(tables.Lot, tables.Lot.id == tables.Part.lot_id)
        .join(tables.Product, tables.Product.id == tables.Lot.product_id)
    )


def _explanations(connection: Connection, inspection_ids: Sequence[int]) -> dict[int, Document]:
    rows = _rows(connection, tables.Explanation, "inspection_id", inspection_ids)
    ids = [row.pop("id") for row in rows]
    regions = _children(connection, tables.ExplanationRegion, ids)
    tiles = _children(connection, tables.ExplanationTile, ids)
    blocks = _children(connection, tables.BlockMap, ids)
    blob_ids = {row["fused_blob_id"] for row in rows}
    blob_ids |= {block["sums_blob_id"] for each in blocks.values() for block in each if "sums_blob_id" in block}
    shas: dict[int, str] = {}
    for chunk in chunks(blob_ids):
        shas |= _names(connection, tables.MapBlob, "sha256", chunk)
    found = {}
    for number, row in zip(ids, rows, strict=True):
        for block in blocks[number]:
            if block["predicted"] == 0:  # added by revision 0005
                del block["predicted"]
            if "sums_blob_id" in block:
                block["sums_sha256"] = shas[block.pop("sums_blob_id")]
        row["fused_sha256"] = shas[row.pop("fused_blob_id")]
        found[row.pop("inspection_id")] = row | {
            "regions": regions[number],
            "tiles": tiles[number],
            "blocks": blocks[number],
        }
    return found


def _signals(connection: Connection, inspection_ids: Sequence[int]) -> dict[int, Document]:
    """Image statistics by inspection, and the embedding of an explained one as hexadecimal digits."""
    rows = _rows(connection, tables.PictureSignal, "inspection_id", inspection_ids)
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
    """The rows in which a column holds one of these numbers, in the order of their keys."""
    names = [column.name for column in table.__table__.columns]
    moments = [column.name for column in table.__table__.columns if isinstance(column.type, UtcTime)]
    found = []
    for row in connection.execute(_asking_rows(table, name), {"among": list(ids)}).all():
        document = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for name in moments:
            if name in document:
                document[name] = document[name].isoformat(timespec="microseconds")
        found.append(document)
    return found


@cache
def _asking_rows(table: type[tables.Base], name: str) -> Select[Any]:
    """Making such a statement takes longer than running it."""
    order = table.__table__.primary_key.columns  # type: ignore[attr-defined]
    return select(table.__table__).where(_among(_column(table, name))).order_by(*order)


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
    """Whether a column holds one of the numbers, written out: 500 parameters take the driver longer than the rows."""
    wanted: BindParameter[Any] = bindparam("among", expanding=True, literal_execute=True)
    found: ColumnElement[bool] = column.in_(wanted)
    return found
