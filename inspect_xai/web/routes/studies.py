"""Agreement studies on the desk: set up by the quality department, judged blind, part by part, in a stored order."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from inspect_xai.errors import NotFoundError, StudyError
from inspect_xai.records import VerdictCode
from inspect_xai.storage.studies import Progress, Studies, Study, Task
from inspect_xai.web import forms, rendering
from inspect_xai.web.auth import Person, Role
from inspect_xai.web.context import Form, RefusedError, Site, see, site_of

router = APIRouter(prefix="/studies", include_in_schema=False)
StudyId = Annotated[int, Path(ge=1, le=2**63 - 1)]
_MOST_PARTS = 500


async def _judging(request: Request) -> Form:
    return await site_of(request).form(request, Role.OPERATOR)


async def _quality(request: Request) -> Form:
    return await site_of(request).form(request, Role.QUALITY)


Judging = Annotated[Form, Depends(_judging)]
Quality = Annotated[Form, Depends(_quality)]


@router.get("")
def listing(request: Request) -> Response:
    """Show all studies, and to the quality department the form that sets one up."""
    site = site_of(request)
    person = site.person(request)
    return _listing_page(site, request, person)


@router.post("")
def create(request: Request, form: Quality) -> Response:
    """Set up a study."""
    site = site_of(request)
    numbers = {name: forms.number_in(form.get(name)) for name in ("parts", "trials", "seed")}
    ids = [forms.number_in(text) for text in form.get("inspections").replace(",", " ").split()]
    if None in numbers.values() or None in ids or (numbers["parts"] or 0) > _MOST_PARTS:
        return _listing_page(site, request, form.person, status=422, wrong="", sent=form.fields)
    try:
        study = Studies(site.store.database).create(
            form.get("name"),
            appraisers=[name.strip() for name in form.get("appraisers").split(",") if name.strip()],
            parts=numbers["parts"] or 0,
            trials=numbers["trials"] or 0,
            seed=numbers["seed"] or 0,
            by=form.person.name,
            inspection_ids=[number for number in ids if number is not None],
        )
    except (StudyError, NotFoundError) as error:
        return _listing_page(site, request, form.person, status=422, wrong=str(error), sent=form.fields)
    return see(f"/studies/{study.study_id}")


@router.get("/{study_id}")
def study(request: Request, study_id: StudyId) -> Response:
    """Show how far a study has come, what the reader has to do, and once it is complete its numbers."""
    site = site_of(request)
    person = site.person(request)
    studies = Studies(site.store.database)
    found = studies.get(study_id)
    progress = studies.progress(study_id)
    is_complete = all(each.answered == each.parts for each in progress)
    return site.page(
        request,
        "study.html",
        study=found,
        progress=progress,
        mine=[each for each in progress if each.appraiser == person.name],
        may_judge=_may_judge(found, person),
        may_refer=_may_refer(found, person),
        reference=next(each for each in progress if not each.trial),
        agreement=_agreement(studies, study_id) if is_complete and person.may(Role.QUALITY) else None,
    )


@router.get("/{study_id}/judge")
def judge(request: Request, study_id: StudyId) -> Response:
    """Show the next part of the reader's trial, without a word of what the model or anybody said of it."""
    site = site_of(request)
    person = site.person(request, Role.OPERATOR)
    studies = Studies(site.store.database)
    found = studies.get(study_id)
    appraiser = _asked_as(found, person, is_reference=request.query_params.get("reference") == "1")
    task = studies.next_task(study_id, appraiser)
    if task is None:
        return see(f"/studies/{study_id}")
    given = site.store.get(task.inspection_id)
    return site.page(
        request,
        "study_judge.html",
        study=found,
        task=task,
        serial="" if task.trial else given.capture.part.serial,  # the experts fetch the part itself
        begins=task.place == 1 and task.trial > 1,
        size=(given.capture.height_px, given.capture.width_px),
        missing=site.archive.fault(given),
    )


@router.post("/{study_id}/judge")
def answered(request: Request, study_id: StudyId, form: Judging) -> Response:
    """Append an answer and show the next part."""
    site = site_of(request)
    studies = Studies(site.store.database)
    is_reference = form.get("reference") == "1"
    task = studies.next_task(study_id, _asked_as(studies.get(study_id), form.person, is_reference=is_reference))
    said = form.get("verdict")
    if said not in (VerdictCode.OK, VerdictCode.NG) and (is_reference or said != VerdictCode.UNSURE):
        raise RefusedError(422, "form.decision")
    # A form sent twice, or from a second window, is about a part that is answered already: it changes nothing.
    if task is not None and forms.number_in(form.get("task")) == task.task_id:
        studies.answer(task, VerdictCode(said), by=form.person.name)
    return see(f"/studies/{study_id}/judge", reference="1" if is_reference else "")


@router.get("/{study_id}/tasks/{task_id}/picture.png")
def picture(request: Request, study_id: StudyId, task_id: Annotated[int, Path(ge=1, le=2**63 - 1)]) -> Response:
    """Return the picture to be judged; its address names no part, so that nobody recognizes it in the queue."""
    site = site_of(request)
    person = site.person(request, Role.OPERATOR)
    studies = Studies(site.store.database)
    task = studies.task(task_id)
    if task.study_id != study_id or not _is_asked(studies, task, person):
        raise RefusedError(403, "error.403")
    given = site.store.get(task.inspection_id)
    site.archive.check_there(given)
    name = rendering.content_name(given.capture.sha256, given.model.fingerprint, given.policy_version)
    content = site.kept.get(f"{name}-picture", lambda: rendering.png(site.archive.read(given)))
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})


def _may_judge(study: Study, person: Person) -> bool:
    return person.may(Role.OPERATOR) and person.name in study.appraisers


def _may_refer(study: Study, person: Person) -> bool:
    """Whether somebody may give the reference: not who is measured against it."""
    return person.may(Role.QUALITY) and person.name not in study.appraisers


def _asked_as(study: Study, person: Person, *, is_reference: bool) -> str:
    """As which appraiser somebody answers.

    Raises:
        RefusedError: They are not asked.
    """
    if not (_may_refer(study, person) if is_reference else _may_judge(study, person)):
        raise RefusedError(403, "study.not_asked")
    return "" if is_reference else person.name


def _is_asked(studies: Studies, task: Task, person: Person) -> bool:
    """Whether this is the part that somebody judges next: no other picture of a study is shown."""
    if task.appraiser:
        may = task.appraiser == person.name
    else:
        may = _may_refer(studies.get(task.study_id), person)
    return may and studies.next_task(task.study_id, task.appraiser) == task


def _agreement(studies: Studies, study_id: int) -> object:
    from inspect_xai.statistics.agreement import analyze  # its statistics package takes a second to load

    try:
        return analyze(studies.rows(study_id))
    except StudyError as error:
        return str(error)


def _listing_page(
    site: Site,
    request: Request,
    person: Person,
    *,
    status: int = 200,
    wrong: str | None = None,
    sent: dict[str, str] | None = None,
) -> Response:
    studies = Studies(site.store.database)
    found: list[tuple[Study, list[Progress]]] = [(each, studies.progress(each.study_id)) for each in studies.all()]
    return site.page(
        request,
        "studies.html",
        status=status,
        studies=found,
        may_create=person.may(Role.QUALITY),
        wrong=wrong,
        sent=sent or {},
    )
