"""The last reports: a list, each with its alarms, whom they belong to and who looks after them, and the page itself."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathPart
from starlette.responses import HTMLResponse, Response

from inspect_xai.reports.index import ShelvedReport, reports_in
from inspect_xai.storage.quality_records import QualityRecords
from inspect_xai.web.auth import Role
from inspect_xai.web.context import Form, RefusedError, Site, see, site_of

router = APIRouter(include_in_schema=False)

_PAGE_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""A report styles itself and holds its pictures; it runs nothing and loads nothing."""

_MOST_NOTE = 500
Name = Annotated[str, PathPart(pattern=r"^[0-9A-Za-z_-]{1,80}$")]


async def _answering(request: Request) -> Form:
    return await site_of(request).form(request, Role.QUALITY)


Answering = Annotated[Form, Depends(_answering)]


@router.get("/reports")
def reports(request: Request) -> Response:
    """List the newest reports."""
    site = site_of(request)
    site.person(request)
    seen = QualityRecords(site.store.database).acknowledged()
    return site.page(request, "reports.html", reports=_shelf(site), seen=seen)


@router.get("/reports/{name}")
def report(request: Request, name: Name) -> Response:
    """Show what one report says in short, with its alarms."""
    site = site_of(request)
    person = site.person(request)
    found = _named(site, name)
    seen = QualityRecords(site.store.database).acknowledged()
    return site.page(request, "report.html", report=found, seen=seen, may_answer=person.may(Role.QUALITY))


@router.get("/reports/{name}/page")
def page(request: Request, name: Name) -> Response:
    """Give the report's own page; it shows verdicts, so those who judge blind do without."""
    site = site_of(request)
    person = site.person(request)
    if site.settings.blind_share and person.may(Role.OPERATOR) and not person.may(Role.QUALITY):
        raise RefusedError(403, "error.403")
    text = _named(site, name).page.read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})


@router.post("/reports/{name}/alarms")
def acknowledge(request: Request, name: Name, form: Answering) -> Response:
    """Write down that somebody looks after an alarm."""
    site = site_of(request)
    found, alarm_id = _named(site, name), form.get("alarm")
    if alarm_id not in {alarm["alarm_id"] for alarm in found.alarms}:
        raise RefusedError(404, "error.404")
    QualityRecords(site.store.database).acknowledge(alarm_id, by=form.person.name, note=form.get("note")[:_MOST_NOTE])
    return see(f"/reports/{name}")


def _shelf(site: Site) -> list[ShelvedReport]:
    return reports_in(site.settings.reports or Path("reports"))


def _named(site: Site, name: str) -> ShelvedReport:
    for each in _shelf(site):
        if each.name == name:
            return each
    raise RefusedError(404, "error.404")
