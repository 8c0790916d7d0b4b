"""The pages an operator sees: sign-in, queue, inspection with its form, part, models, help."""

import secrets
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import RedirectResponse, Response

from inspect_xai.errors import DatabaseAwayError, NotFoundError
from inspect_xai.records import Review
from inspect_xai.storage.results import StoredInspection
from inspect_xai.storage.review_queue import Answer, Conflict
from inspect_xai.storage.review_queue_sql import QueueState
from inspect_xai.storage.review_reasons import State
from inspect_xai.web import forms, view_models
from inspect_xai.web.auth import Person, Role
from inspect_xai.web.context import THEMES, Form, RefusedError, Site, local_path, read_fields, see, site_of
from inspect_xai.web.i18n import LANGUAGES

PAGE_LENGTH = 25
_MOST_SKIPPED = 200

router = APIRouter(include_in_schema=False)
InspectionId = Annotated[int, Path(ge=1, le=2**63 - 1)]


async def _judging(request: Request) -> Form:
    return await site_of(request).form(request, Role.OPERATOR)


async def _looking(request: Request) -> Form:
    return await site_of(request).form(request, Role.VIEWER)


Judging = Annotated[Form, Depends(_judging)]
Looking = Annotated[Form, Depends(_looking)]


@router.get("/")
def start() -> RedirectResponse:
    """Send a reader to the queue."""
    return see("/queue")


@router.get("/signin")
def signin(request: Request) -> Response:
    """Ask who somebody is."""
    site = site_of(request)
    if site.access.signed_in(request):
        return see(local_path(request.query_params.get("next", "")))
    return site.page(request, "signin.html", access=site.access, next=request.query_params.get("next", ""), wrong="")


@router.post("/signin")
async def signed_in(request: Request) -> Response:
    """Begin a session of somebody who gave a token, or on an open desk a name."""
    site = site_of(request)
    fields = await read_fields(request)
    session = site.access.session(request)
    if not site.access.is_genuine(session, fields.get("csrf", "")):
        raise RefusedError(403, "error.csrf")
    name = " ".join(fields.get("name", "").split())
    if site.access.is_open:
        wrong = "" if site.access.is_name_free_to_take(name) else "signin.no_name"
    else:
        client = site.access.client(request)
        if site.wrong_tokens.left(client) < 1:
            raise RefusedError(429, "error.429")
        person = site.access.person_of_token(fields.get("token", ""))
        if person is None:
            site.wrong_tokens.allows(client)
        name, wrong = (person.name, "") if person else ("", "signin.unknown")
    if wrong:
        return site.page(
            request, "signin.html", status=401, access=site.access, next=fields.get("next", ""), wrong=wrong
        )
    response = see(local_path(fields.get("next", "")))
    site.set_cookie(response, site.access.begin(name, like=session))
    return response


@router.post("/signout")
def signout(request: Request, form: Looking) -> Response:
    """End the session; an admin can end everybody's."""
    site = site_of(request)
    if form.get("everybody"):
        if not form.person.may(Role.ADMIN):
            raise RefusedError(403, "error.403")
        site.access.end_all()
    session = site.access.session(request)
    if session is not None:
        site.access.end(session)
    response = see("/signin")
    response.delete_cookie(
        site.access.cookie, path=site.access.cookie_path, secure=site.settings.https, httponly=True, samesite="strict"
    )
    return response


@router.post("/preferences")
async def preferences(request: Request) -> Response:
    """Keep language and colors for this session; also before somebody signed in."""
    site = site_of(request)
    fields = await read_fields(request)
    session = site.access.session(request)
    if session is None or not site.access.is_genuine(session, fields.get("csrf", "")):
        raise RefusedError(403, "error.csrf")
    language, theme = fields.get("language", ""), fields.get("theme", "")
    site.access.choose(
        session, language=language if language in LANGUAGES else "", theme=theme if theme in THEMES else ""
    )
    return see(local_path(fields.get("back", "")))


@router.get("/queue")
def queue(request: Request) -> Response:
    """Show what waits, most urgent first."""
    site = site_of(request)
    person = site.person(request)
    words = forms.filter_words(request.query_params)
    site.desk.enqueue_new()
    after = forms.place_in(request.query_params.get("after", ""))
    entries = site.desk.queue(forms.queue_filter(words, datetime.now(UTC)), after=after, limit=PAGE_LENGTH + 1)
    last = entries[PAGE_LENGTH - 1] if len(entries) > PAGE_LENGTH else None
    more = f"/queue?{urlencode(words | {'after': view_models.place_of(last)})}" if last else ""
    return site.page(
        request,
        "queue.html",
        entries=entries[:PAGE_LENGTH],
        overview=site.desk.overview(),
        filters=words,
        filter_query=urlencode(words),
        older=tuple(forms.OLDER),
        is_first=after is None,
        more=more,
        may_judge=person.may(Role.OPERATOR),
        covered=site.covered(person, [entry.inspection_id for entry in entries if entry.is_blind]),
        done=_done(site, request, person),
        broken=dict(site.broken) if person.may(Role.QUALITY) else {},
        shown=view_models,
    )


@router.post("/queue/next")
def next_part(request: Request, form: Judging) -> Response:
    """Hold the next part for the operator and show it."""
    return _to_next(site_of(request), request, form)


@router.get("/inspections/{inspection_id}")
def inspection(request: Request, inspection_id: InspectionId) -> Response:
    """Show one inspection, and where the reader may judge, the form."""
    site = site_of(request)
    person = site.person(request)
    try:
        page = _inspection_page(site, request, person, inspection_id)
    except (NotFoundError, DatabaseAwayError):
        raise
    except Exception as error:
        if person.may(Role.OPERATOR):
            site.note_broken(inspection_id, error, person=person.name)
        raise
    site.broken.pop(inspection_id, None)
    return page


@router.post("/inspections/{inspection_id}/claim")
def claim(request: Request, inspection_id: InspectionId, form: Judging) -> Response:
    """Hold this part for the operator."""
    site = site_of(request)
    conflict = site.desk.claim(inspection_id, form.person.name)
    if conflict is not None:
        return _conflict_page(site, request, inspection_id, conflict, form)
    return see(f"/inspections/{inspection_id}", **forms.filters_in(form.get("back")))


@router.post("/inspections/{inspection_id}/release")
def release(request: Request, inspection_id: InspectionId, form: Judging) -> Response:
    """Give a held part back; who holds another role may take it from somebody who left."""
    site = site_of(request)
    whoever = bool(form.get("whoever"))
    if whoever and not form.person.may(Role.QUALITY):
        raise RefusedError(403, "error.403")
    site.desk.release(inspection_id, form.person.name, whoever_holds_it=whoever)
    return see("/queue", **forms.filters_in(form.get("back")))


@router.post("/inspections/{inspection_id}/review")
def review(request: Request, inspection_id: InspectionId, form: Judging) -> Response:
    """Append the operator's answer and go on to the next part."""
    site = site_of(request)
    given = site.store.get(inspection_id)
    blind = bool(form.get("blind"))
    try:
        said = forms.answer_in(form.fields, given, person=form.person.name, blind=blind, reasons=site.store.reasons())
    except forms.FormError as error:
        return _inspection_page(
            site, request, form.person, inspection_id, status=422, wrong=error.key, sent=form.fields
        )
    answer = Answer(
        inspection_id=inspection_id,
        review=said,
        key=form.get("key")[:100] or secrets.token_urlsafe(12),
        newest_seen=forms.number_in(form.get("newest")),
    )
    outcome = site.desk.answer(answer, may_correct_others=form.person.may(Role.QUALITY))
    if isinstance(outcome, Conflict):
        return _conflict_page(site, request, inspection_id, outcome, form, said=said)
    if blind:
        return see(f"/inspections/{inspection_id}", **forms.filters_in(form.get("back")))
    return _to_next(site, request, form, done=inspection_id)


@router.get("/parts")
def part(request: Request) -> Response:
    """Show all that was recorded of the parts with a serial number."""
    site = site_of(request)
    person = site.person(request)
    serial = request.query_params.get("serial", "").strip()[:200]
    found = site.shown(person, site.store.find(serial=serial, limit=100)) if serial else []
    return site.page(
        request, "part.html", status=200 if found or not serial else 404, serial=serial, found=found, shown=view_models
    )


@router.get("/models")
def models(request: Request) -> Response:
    """Show which models are registered and approved."""
    site = site_of(request)
    site.person(request)
    return site.page(request, "models.html", models=site.store.registry.models())


@router.get("/help")
def help_page(request: Request) -> Response:
    """Explain keys and map, for readers without JavaScript too."""
    site = site_of(request)
    site.person(request)
    return site.page(request, "help.html")


def _inspection_page(
    site: Site,
    request: Request,
    person: Person,
    inspection_id: int,
    *,
    status: int = 200,
    wrong: str = "",
    sent: dict[str, str] | None = None,
) -> Response:
    given = site.store.get(inspection_id)
    query = forms.filter_words(request.query_params) or forms.filters_in((sent or {}).get("back", ""))
    seen = site.desk.seen(inspection_id, person.name, forms.queue_filter(query, datetime.now(UTC)))
    is_covered = seen.is_covered and person.may(Role.OPERATOR)
    stage = _stage(seen.standing, person, is_covered=is_covered)
    compare = request.query_params.get("compare") == "1"
    good = site.desk.good_part_like(inspection_id) if compare and not is_covered else None
    return site.page(
        request,
        "inspection.html",
        status=status,
        i=given,
        entry=seen.standing,
        stage=stage,
        blind=is_covered,
        Stage=view_models.Stage,
        drawn=view_models.drawing(given, request.query_params, is_blind=is_covered, archive=site.archive),
        sheet=view_models.sheet(given, site.words(request)),
        reasons=site.store.reasons(),
        history=[] if is_covered else site.shown(person, site.desk.history_of(inspection_id)),
        similar=[] if is_covered else site.desk.similar_to(given),
        compare=compare,
        good=site.store.get(good) if good else None,
        previous_id=seen.previous_id,
        next_id=seen.next_id,
        filter_query=urlencode(query),
        key=(sent or {}).get("key") or secrets.token_urlsafe(12),
        wrong=wrong,
        sent=sent or {},
        done=_done(site, request, person),
        correcting=request.query_params.get("correct") == "1" or "correct" in (sent or {}),
        shown=view_models,
        Role=Role,
    )


def _stage(entry: QueueState | None, person: Person, *, is_covered: bool) -> view_models.Stage:
    if not person.may(Role.OPERATOR):
        return view_models.Stage.READ_ONLY
    if entry is None or entry.state is State.DONE:
        return view_models.Stage.DONE
    if entry.is_own(person.name):
        return view_models.Stage.OWN
    if entry.claimed_by not in ("", person.name):
        return view_models.Stage.HELD
    if entry.is_blind:
        return view_models.Stage.BLIND if is_covered else view_models.Stage.REVEAL
    if entry.second_reviewer:
        return view_models.Stage.THIRD
    return view_models.Stage.SECOND if entry.first_reviewer else view_models.Stage.FIRST


def _to_next(site: Site, request: Request, form: Form, *, done: int | None = None) -> Response:
    query = forms.filters_in(form.get("back"))
    site.desk.enqueue_new()
    wanted = forms.queue_filter(query, datetime.now(UTC))
    session = site.access.session(request)
    skipped = session.skipped if session else ()
    skip = forms.number_in(form.get("skip"))
    left = skipped if skip is None else (*skipped, skip)[-_MOST_SKIPPED:]
    broken = tuple(site.broken)
    found = site.desk.claim_next(form.person.name, wanted, skipped=(*left, *broken))
    if found is None and left:  # nothing else is left: what was skipped comes again
        left = ()
        found = site.desk.claim_next(form.person.name, wanted, skipped=broken)
    if session is not None and left != skipped:
        site.access.leave_for_later(session, left)
    path = "/queue" if found is None else f"/inspections/{found}"
    return see(path, done=done, **query)


def _done(site: Site, request: Request, person: Person) -> StoredInspection | None:
    """Return the inspection that the reader just answered, to be named at the top of the next page."""
    done = forms.number_in(request.query_params.get("done", ""))
    found = site.store.get(done) if done else None
    is_mine = found and found.reviews and found.reviews[-1].reviewer == person.name and not found.reviews[-1].blind
    return found if is_mine else None


def _conflict_page(
    site: Site, request: Request, inspection_id: int, conflict: Conflict, form: Form, *, said: Review | None = None
) -> Response:
    given = site.store.get(inspection_id)
    covered = bool(site.covered(form.person, [inspection_id]))
    return site.page(
        request,
        "conflict.html",
        status=409,
        refusal=view_models.refusal(
            conflict, site.words(request), person=form.person.name, serial=given.capture.part.serial
        ),
        covered=covered,
        theirs=None if covered else conflict.review,
        yours=said,
        reasons=site.store.reasons(),
        i=given,
        filter_query=urlencode(forms.filters_in(form.get("back"))),
    )
