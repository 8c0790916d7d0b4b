"""Evidence: all records of some inspections in one ZIP, which anyone can check by hashing.

    SHA256SUMS                   of every other file: `sha256sum -c SHA256SUMS`
    README.txt                   how to check the rest
    results/17.json              the result, by the field names of OPC 40100-1 where there is one
    documents/inspection-17.json the rows as the ledger hashed them: their sha256 are in `rows` of an event
    documents/review-3.json, documents/model-1.json (with the model card)
    pictures/17.png              the archived file, as it was
    maps/17/fused.npy            float32 (H, W); sums_TILE_BLOCK.npy: the data of the block maps
    overlays/17.png              the picture with the map on it
    chain.jsonl                  the ledger from the first event that vouches for one of these rows to its head
    public_keys/KEY.pem          of the keys that signed these events, where they are signed

The same record gives the same bytes.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import NotFoundError, PictureError
from inspect_xai.intake.decode import decode_picture
from inspect_xai.maths import color
from inspect_xai.records import document_key
from inspect_xai.storage.results import StoredInspection
from inspect_xai.storage.signing_keys import pem_of
from inspect_xai.storage.store import Store
from inspect_xai.storage.types import canonical
from inspect_xai.verify.replay import archived_picture, limits_of

SCHEMA_VERSION: Final = 1
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time of a ZIP entry
_COMPLETED, _FAILED = 1, 4  # ResultStateDataType
_README: Final = """Evidence from inspect-xai, schema {schema}: {count} inspections.
Chain head when it was exported: {head}

To check it without inspect-xai:
1. sha256sum -c SHA256SUMS
2. The sha256 of documents/KIND-ID.json stands under "KIND/ID" in `rows` of an event in chain.jsonl. Of an inspection or
   a review the first event that names it counts, and no later one may say otherwise; of a model the last. Each document
   is canonical JSON: sorted keys, no spaces, UTF-8, no line end.
3. Each line of chain.jsonl holds `body`, `previous_hash` and `hash`: hash = sha256(previous_hash + body), and each
   previous_hash is the hash of the line before. The last hash is the chain head above: compare it with one that was
   printed or sent elsewhere at the time.
4. The sha256 of a picture stands in its inspection's document (capture.sha256).
{signed}{missing}"""
_SIGNED: Final = """\
5. A signed line holds `signed_by`, a public key, and `signature`, the Ed25519 signature of the 64 characters of `hash`,
   both in hexadecimal digits. Compare the key with the one that the plant gave you by another way. With the characters
   in the file hash.txt and the signature's 64 bytes in signature.bin:
   openssl pkeyutl -verify -pubin -inkey public_keys/KEY.pem -rawin -in hash.txt -sigfile signature.bin
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """An export; `missing` names files that are recorded but no longer there."""

    path: Path
    sha256: str
    head: str
    inspections: int
    files: int
    missing: tuple[str, ...]


def export_evidence(store: Store, inspection_ids: Sequence[int], *, out: Path, archive: Path | None = None) -> Evidence:
    """Write the evidence of some inspections.

    Args:
        store: The record.
        inspection_ids: Which ones.
        out: The ZIP file, written whole or not at all.
        archive: Where the archived pictures lie now, if they were moved.

    Raises:
        NotFoundError: If there are none.
        StoreError: If a map does not hash to what was recorded.
    """
    ids = sorted(set(inspection_ids))
    if not ids:
        raise NotFoundError("no inspection fits", remedy="list inspections with: inspect-xai find")
    recorded = store.ledger.evidence(ids)
    files: dict[str, bytes] = {}
    missing: list[str] = []
    for name, document in recorded["documents"].items():
        files[f"documents/{name.replace('/', '-')}.json"] = canonical(document).encode()
    for inspection_id in ids:
        stored = store.get(inspection_id, maps=True)
        own, lost = _files_of(stored, archive)
        files |= own
        missing += lost
        files[f"results/{inspection_id}.json"] = _readable(result_of(stored, sorted(own)))
    first = min((event["sequence"] for event in recorded["events"]), default=1)
    chain = store.ledger.chain(after=first - 1)
    readable = {event.sequence for event in store.ledger.events(after=first - 1)}
    sequences = [line.pop("id") for line in chain]
    missing += [f"event {n} of the ledger: its body cannot be read" for n in sequences if n not in readable]
    vouched = {name for event in recorded["events"] for name in event["rows"]}
    unvouched = recorded["documents"].keys() - vouched
    missing += [f"an event for {name}: none that can be read recorded it" for name in sorted(unvouched)]
    for line in chain:
        if not line["signed_by"]:
            del line["signed_by"], line["signature"]
    signers = {line["signed_by"] for line in chain if "signed_by" in line}
    files |= {f"public_keys/{key[:16]}.pem": pem_of(key).encode() for key in signers}
    head = chain[-1]["hash"] if chain else recorded["head"]
    files["chain.jsonl"] = "".join(f"{canonical(line)}\n" for line in chain).encode()
    not_here = "".join(f"\nNot here: {text}" for text in missing) + ("\n" if missing else "")
    readme = _README.format(
        schema=SCHEMA_VERSION, count=len(ids), head=head, missing=not_here, signed=_SIGNED * bool(signers)
    )
    files["README.txt"] = readme.encode()
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    files["SHA256SUMS"] = sums.encode()
    data = _zipped(files)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.part")
    aside.write_bytes(data)
    aside.replace(out)
    return Evidence(out, hashlib.sha256(data).hexdigest(), head, len(ids), len(files), tuple(missing))


def result_of(stored: StoredInspection, files: Sequence[str] = ()) -> dict[str, Any]:
    """Return an inspection as a result by the field names of OPC 40100-1 (docs/reference/record.md has the table)."""
    capture, model = stored.capture, stored.model
    return {
        "ResultId": str(stored.inspection_id),
        "HasTransferableDataOnFile": bool(files),
        "IsPartial": False,
        "IsSimulated": False,
        "ResultState": _FAILED if stored.failure else _COMPLETED,
        "MeasId": capture.sha256,
        "PartId": capture.part.serial,
        "ExternalRecipeId": f"{model.name} {model.version}",
        "InternalRecipeId": model.fingerprint,
        "ProductId": capture.part.product,
        "InternalConfigurationId": stored.policy_version,
        "JobId": stored.run.run_id,
        "CreationTime": stored.inspected_at.isoformat(),
        "ProcessingTimes": {"StartTime": stored.inspected_at.isoformat(), "ProcessingDuration": stored.duration_ms},
        "ResultUri": list(files),
        "ResultContent": {
            "capture": _plain(capture),
            "verdict": _plain(stored.verdict),
            "prediction": _plain(stored.prediction),
            "explanation": _explanation(stored),
            "explained_because": stored.explain_reason,
            "failure": _plain(stored.failure),
            "model": _plain(model) | {"status_at_verdict": stored.model_status},
            "run": _plain(stored.run),
            "reviews": [_plain(review) for review in stored.reviews],
        },
    }


def _files_of(stored: StoredInspection, archive: Path | None) -> tuple[dict[str, bytes], list[str]]:
    """Return picture, maps and overlay of one inspection by name, and texts about those no longer there."""
    number, files, missing = stored.inspection_id, {}, []
    pixels = None
    try:
        data = archived_picture(stored, archive=archive)
        if stored.capture.height_px and hashlib.sha256(data).hexdigest() != stored.capture.sha256:
            raise PictureError("the archived file is another one than the picture inspected")
        suffix = PurePosixPath(stored.capture.file_name).suffix.lower()
        files[f"pictures/{number}{suffix}"] = data
        pixels = decode_picture(data, limits=limits_of(stored)) if stored.capture.height_px else None
    except PictureError as error:
        missing.append(f"the picture of inspection {number}: {error}")
    explanation = stored.explanation
    if explanation is None:
        return files, missing
    if explanation.fused is None:
        missing.append(f"the maps of inspection {number}: retention deleted them")
        return files, missing
    files[f"maps/{number}/fused.npy"] = _npy(explanation.fused)
    for tile in explanation.tiles:
        for position, block in enumerate(tile.blocks):
            if block.sums is not None:
                files[f"maps/{number}/sums_{tile.tile.index}_{position}.npy"] = _npy(block.sums)
    if pixels is not None and pixels.shape[:2] == explanation.fused.shape:
        shown = color.overlay(pixels, explanation.fused, regions=explanation.regions)
        _, png = cv2.imencode(".png", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        files[f"overlays/{number}.png"] = png.tobytes()
    return files, missing


def _explanation(stored: StoredInspection) -> dict[str, Any] | None:
    if stored.explanation is None:
        return None
    facts: dict[str, Any] = _plain(dataclasses.replace(stored.explanation, fused=None))
    del facts["fused"]
    for tile in facts["tiles"]:
        for block in tile["blocks"]:
            del block["sums"]
    return facts


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {document_key(entry.name): _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, np.ndarray):
        return None  # maps are files of the ZIP
    return value.isoformat() if hasattr(value, "isoformat") else value


def _readable(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, files[name], compresslevel=6)
    return buffer.getvalue()
