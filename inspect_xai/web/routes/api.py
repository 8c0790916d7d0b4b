"""The JSON interface for quality systems and MES: OpenAPI at /api/v1/openapi.json; see docs/reference/api.md."""

import io
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from inspect_xai.errors import InspectXaiError, NotFoundError
from inspect_xai.records import Decision
from inspect_xai.reports.inspection_json import InspectionOut, inspection_json
from inspect_xai.storage.results import InspectionSummary, StoredModel, StoredReview
from inspect_xai.storage.review_queue import Answer, Conflict
from inspect_xai.storage.review_queue_sql import BLIND, QueueFilter
from inspect_xai.web import forms, view_models
from inspect_xai.web.auth import Person, Role
from inspect_xai.web.context import RefusedError, SignInNeededError, site_of, without_verdict
from inspect_xai.web.prometheus import CONTENT_TYPE, exposition

router = APIRouter()
_V1 = "/api/v1"
InspectionId = Annotated[int, Path(ge=1, le=2**63 - 1)]


def _reader(request: Request) -> Person:
    if len(request.query_params.multi_items()) > len(request.query_params):
        raise RefusedError(422, "error.422")  # a parameter given twice: a proxy in between may have read the other one
    site = site_of(request)
    person = site.access.signed_in(request)
    if person is None and site.access.is_open and site.access.bearer(request) is None:
        # The open desk listens to this machine only. Whoever sits there may be the one who judges blind.
        return Person("local", Role.OPERATOR)
    if person is None:
        raise SignInNeededError
    return person


def _writer(request: Request) -> Person:
    """Who sends an answer. A browser's session also needs the token of its pages, since it is sent along unasked."""
    site = site_of(request)
    person = site.person(request, Role.OPERATOR)
    if site.access.bearer(request) is None:
        session = site.access.session(request)
        is_own = session is not None and session.person == person.name
        if not is_own or not site.access.is_genuine(session, request.headers.get("x-csrf-token", "")):
            raise RefusedError(403, "error.csrf")
    return person


Reader = Annotated[Person, Depends(_reader)]
Writer = Annotated[Person, Depends(_writer)]


class Inspections(BaseModel):
    """A page of inspections in the order they were recorded; ask on with `after` as long as it is not null."""

    inspections: list[InspectionSummary]
    after: int | None


class QueueItem(BaseModel):
    """One inspection that waits for a person."""

    inspection: InspectionSummary
    why: str
    claimed_by: str
    claimed_until: datetime | None
    judged_by: str


class Queue(BaseModel):
    """A page of the queue, most urgent first; ask on with `after` as long as it is not null."""

    waiting: int
    items: list[QueueItem]
    after: str | None


class ReviewIn(BaseModel):
    """An answer to a verdict."""

    model_config = ConfigDict(extra="forbid")

    decision: Decision
    newest_seen: int | None = Field(
        default=None, description="id of the newest review you know of; null: none. 409 if there is a newer one"
    )
    true_label: str = Field(default="", max_length=200)
    reason_code: str = Field(default="", max_length=200)
    map_on_defect: str = Field(default="", pattern="^(yes|partly|no)?$")
    box: tuple[int, int, int, int] | None = Field(default=None, description="top, left, height, width in source pixels")
    note: str = Field(default="", max_length=2000)


class ReviewOut(BaseModel):
    """Under which id the answer stands, and whether it was written now or under the same key before."""

    review_id: int
    is_new: bool


class Fault(BaseModel):
    """What was refused, and why."""

    error: str
    message: str = ""


_FAULTS: dict[int | str, dict[str, Any]] = {status: {"model": Fault} for status in (401, 403, 404, 422, 429, 503)}


@router.get(f"{_V1}/inspections", responses=_FAULTS)
def inspections(
    request: Request,
    person: Reader,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="id of the last inspection seen")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Inspections:
    """Inspections in the order they were recorded, to be copied by polling."""
    site = site_of(request)
    found = site.desk.recorded_after(after, limit=limit)
    return Inspections(
        inspections=site.shown(person, found), after=found[-1].inspection_id if len(found) == limit else None
    )


@router.get(f"{_V1}/inspections/{{inspection_id}}", responses=_FAULTS)
def inspection(request: Request, person: Reader, inspection_id: InspectionId) -> InspectionOut:
    """One inspection with everything that belongs to it."""
    site_of(request).check_uncovered(person, inspection_id)
    return inspection_json(site_of(request).store.get(inspection_id))


@router.get(
    f"{_V1}/inspections/{{inspection_id}}/map",
    response_class=Response,
    responses=_FAULTS | {200: {"content": {"application/octet-stream": {}}, "description": "a .npy file"}},
)
def explanation_map(request: Request, person: Reader, inspection_id: InspectionId) -> Response:
    """Return the explanation map, float32 (H, W) of the source picture, as a .npy file."""
    site_of(request).check_uncovered(person, inspection_id)
    explanation = site_of(request).store.get(inspection_id, maps=True).explanation
    if explanation is None or explanation.fused is None:
        raise NotFoundError(f"inspection {inspection_id} has no map")
    file = io.BytesIO()
    np.save(file, explanation.fused, allow_pickle=False)
    headers = {"Content-Disposition": f'attachment; filename="map-{inspection_id}.npy"'}
    return Response(file.getvalue(), media_type="application/octet-stream", headers=headers)


@router.get(f"{_V1}/inspections/{{inspection_id}}/reviews", responses=_FAULTS)
def reviews(request: Request, person: Reader, inspection_id: InspectionId) -> list[StoredReview]:
    """All answers about an inspection, oldest first; those that were corrected later say so."""
    site_of(request).check_uncovered(person, inspection_id)
    return list(site_of(request).store.get(inspection_id).reviews)


@router.post(
    f"{_V1}/inspections/{{inspection_id}}/reviews",
    status_code=201,
    response_model=ReviewOut,
    responses=_FAULTS
    | {200: {"model": ReviewOut, "description": "it stood there under this key"}}
    | {400: {"model": Fault, "description": "no JSON"}, 409: {"model": Fault}},
)
def add_review(
    request: Request,
    person: Writer,
    inspection_id: InspectionId,
    sent: ReviewIn,
    idempotency_key: Annotated[str, Header(min_length=8, max_length=100)],
) -> Response:
    """Append an answer. Sent again under the same Idempotency-Key it is the same answer, with status 200.

    Another answer under the same key is refused with 409, and nothing of it is written.
    """
    site = site_of(request)
    given = site.store.get(inspection_id)
    fields = {
        "decision": sent.decision,
        "label": sent.true_label,
        "reason": sent.reason_code,
        "on_defect": sent.map_on_defect,
        "note": sent.note,
    }
    if sent.box is not None:
        fields |= {f"box_{name}": str(n) for name, n in zip(("top", "left", "height", "width"), sent.box, strict=True)}
    try:
        said = forms.answer_in(fields, given, person=person.name, blind=False, reasons=site.store.reasons())
    except forms.FormError as error:
        return JSONResponse({"error": error.key, "message": site.words(request)(error.key)}, status_code=422)
    answer = Answer(inspection_id, said, key=idempotency_key, newest_seen=sent.newest_seen)
    outcome = site.desk.answer(answer, may_correct_others=person.may(Role.QUALITY))
    if isinstance(outcome, Conflict):
        serial = given.capture.part.serial
        refusal = view_models.refusal(outcome, site.words(request), person=person.name, serial=serial)
        return JSONResponse({"error": f"conflict.{outcome.kind}", "message": refusal.text}, status_code=409)
    document = ReviewOut(review_id=outcome.review_id, is_new=outcome.is_new).model_dump()
    return JSONResponse(document, status_code=201 if outcome.is_new else 200)


@router.get(f"{_V1}/queue", responses=_FAULTS)
def queue(
    request: Request,
    person: Reader,
    line: str | None = None,
    station: str | None = None,
    label: str | None = None,
    verdict: str | None = None,
    after: Annotated[str, Query(max_length=30)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Queue:
    """List what waits for a person, most urgent first."""
    site = site_of(request)
    desk = site.desk
    desk.enqueue_new()
    wanted = QueueFilter(line=line, station=station, label=label, verdict=verdict)
    found = desk.queue(wanted, after=forms.place_in(after), limit=limit)
    covered = site.covered(person, [each.inspection_id for each in found if each.is_blind])
    items = [
        QueueItem(
            inspection=without_verdict(each.summary) if each.inspection_id in covered else each.summary,
            why=BLIND if each.inspection_id in covered else each.reason,
            claimed_by=each.claimed_by,
            claimed_until=each.claimed_until,
            judged_by=each.first_reviewer,
        )
        for each in found
    ]
    last = f"{found[-1].priority}-{found[-1].inspection_id}" if len(found) == limit else None
    return Queue(waiting=desk.overview().total, items=items, after=last)


@router.get(f"{_V1}/parts/{{serial:path}}", responses=_FAULTS)
def part(request: Request, person: Reader, serial: Annotated[str, Path(max_length=200)]) -> list[InspectionSummary]:
    """All inspections of the parts with a serial number, newest first."""
    site = site_of(request)
    found = site.store.find(serial=serial, limit=1000)
    if not found:
        raise NotFoundError(f"no part with the serial number {serial!r}")
    return site.shown(person, found)


@router.get(f"{_V1}/models", responses=_FAULTS)
def models(request: Request, _: Reader) -> list[StoredModel]:
    """List registered models with card and approval, newest first."""
    return site_of(request).store.registry.models()


@router.get(f"{_V1}/reasons", responses=_FAULTS)
def reasons(request: Request, _: Reader) -> dict[str, str]:
    """List the plant's reason codes and what they mean."""
    return site_of(request).store.reasons()


@router.get(f"{_V1}/openapi.json", include_in_schema=False)
def openapi(request: Request, _: Reader) -> JSONResponse:
    """Return the description of this interface."""
    app = request.app
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=router.routes)
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        if site_of(request).settings.path:
            found["servers"] = [{"url": site_of(request).settings.path}]
        app.openapi_schema = found
    return JSONResponse(app.openapi_schema)


@router.get("/health/live", include_in_schema=False)
def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/health/ready", include_in_schema=False)
def ready(request: Request) -> Response:
    """Say whether the database answers."""
    try:
        site_of(request).store.reasons()
    except InspectXaiError as error:
        return JSONResponse({"status": "away", "error": type(error).__name__}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, _: Reader) -> PlainTextResponse:
    """Return what was inspected, what it cost and what waits, for Prometheus."""
    site = site_of(request)
    site.desk.enqueue_new()
    return PlainTextResponse(
        exposition(site.totals.now(), site.desk.overview(), broken=len(site.broken)), media_type=CONTENT_TYPE
    )
