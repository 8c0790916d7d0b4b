"""What all pages share: the store, who asks, the words they read, and forms that are checked before they count."""

import dataclasses
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from inspect_xai.settings import ServeSettings
from inspect_xai.storage.metrics_totals import TotalsReader
from inspect_xai.storage.results import InspectionSummary
from inspect_xai.storage.review_queue import Desk
from inspect_xai.storage.store import Store
from inspect_xai.storage.web_sessions import Sessions
from inspect_xai.web.auth import Access, Person, Role, Session
from inspect_xai.web.i18n import LANGUAGES, Words, chosen_language
from inspect_xai.web.middleware import Rate
from inspect_xai.web.rendering import Archive, Kept

_MOST_FIELDS = 50
_MOST_BROKEN = 200
_WRONG_TOKENS_PER_MINUTE = 10  # from one address
_log = logging.getLogger(__name__)
THEMES = ("auto", "light", "dark")


class RefusedError(Exception):
    """A page cannot be given: the status and the key of the text that says why."""

    def __init__(self, status: int, key: str) -> None:
        super().__init__(key)
        self.status = status
        self.key = key


class SignInNeededError(Exception):
    """Nobody known asks for a page that is not for everybody."""


@dataclass(frozen=True, slots=True)
class Form:
    """A posted form of a page that was made for this session."""

    person: Person
    fields: dict[str, str]

    def get(self, name: str) -> str:
        """Return a field's text without spaces around it; empty where it was not sent."""
        return self.fields.get(name, "").strip()


class Site:
    """Everything a page needs, made once.

    Args:
        store: An open store.
        settings: Of the desk.
    """

    def __init__(self, store: Store, settings: ServeSettings) -> None:
        self.store = store
        self.settings = settings
        self.totals = TotalsReader(store.database)
        self.desk = Desk(
            store.database,
            claim_s=settings.claim_s,
            second_share=settings.second_share,
            blind_share=settings.blind_share,
        )
        self.access = Access(settings, Sessions(store.database, idle_s=settings.session_s))
        self.wrong_tokens = Rate(_WRONG_TOKENS_PER_MINUTE, time.monotonic)
        self.archive = Archive(settings.archive)
        self.kept = Kept()
        self.broken: dict[int, str] = {}  # inspections whose page failed, and how: the queue skips them
        self._zone = ZoneInfo(settings.time_zone)
        self._templates = Environment(
            loader=PackageLoader("inspect_xai.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["root"] = settings.path  # what every address of a page begins with

    def person(self, request: Request, role: Role = Role.VIEWER) -> Person:
        """Who asks.

        Raises:
            SignInNeededError: Nobody known.
            RefusedError: Their role does not reach.
        """
        person = self.access.signed_in(request)
        if person is None:
            raise SignInNeededError
        if not person.may(role):
            raise RefusedError(403, "error.403")
        return person

    def covered(self, person: Person, inspection_ids: Collection[int]) -> frozenset[int]:
        """Which of these this person must not see the verdict of: who may judge judges them blind first."""
        return self.desk.covered(inspection_ids, person.name) if person.may(Role.OPERATOR) else frozenset()

    def shown(self, person: Person, found: Sequence[InspectionSummary]) -> list[InspectionSummary]:
        """Lines about inspections as this person may see them: without what the model said of those judged blind."""
        covered = self.covered(person, [each.inspection_id for each in found])
        pictures = {each.sha256 for each in found if each.inspection_id in covered}
        return [without_verdict(each) if each.sha256 in pictures else each for each in found]

    def check_uncovered(self, person: Person, inspection_id: int) -> None:
        """Refuse to show what the model said where this person judges blind first.

        Raises:
            RefusedError: They have to answer before.
        """
        if self.covered(person, [inspection_id]):
            raise RefusedError(403, "error.covered")

    def note_broken(self, inspection_id: int, error: Exception, *, person: str) -> None:
        """Pass an inspection over in the queue because its page failed, and give it back."""
        _log.error("the page of inspection %d failed, the queue passes it over: %r", inspection_id, error)
        self.broken[inspection_id] = type(error).__name__
        for oldest in list(self.broken)[:-_MOST_BROKEN]:
            self.broken.pop(oldest, None)
        self.desk.release(inspection_id, person)

    async def form(self, request: Request, role: Role) -> Form:
        """Read a form after checking the person's role and the CSRF token.

        Raises:
            SignInNeededError: Nobody known sent it.
            RefusedError: It is forged or too old, or their role does not reach.
        """
        fields = await read_fields(request)
        person = self.person(request)
        session = self.access.session(request)
        is_own = session is not None and session.person == person.name
        if not is_own or not self.access.is_genuine(session, fields.get("csrf", "")):
            raise RefusedError(403, "error.csrf")
        return Form(self.person(request, role), fields)

    def words(self, connection: HTTPConnection) -> Words:
        """Return the texts in the language that the reader chose, or else the browser asks for."""
        session = self.access.session(connection)
        accepted = connection.headers.get("accept-language", "")
        language = session.language if session else ""
        return Words(language or chosen_language(accepted, default=self.settings.language), self._zone)

    def page(self, request: HTTPConnection, name: str, *, status: int = 200, **values: Any) -> Response:
        """Render a page; a browser without a session gets one, since its forms need it."""
        person = self.access.signed_in(request)
        session = self.access.session(request)
        is_new = session is None
        if (
            person is not None
            and self.access.is_by_proxy(request)
            and (session is None or session.person != person.name)
        ):
            session, is_new = self.access.begin(person.name, like=session), True
        elif session is None:
            session = self.access.visitor(request)
        words = self.words(request)
        text = self._templates.get_template(name).render(
            t=words,
            person=person,
            roles=Role,
            session=session,
            csrf=self.access.forgery_token(session),
            languages=LANGUAGES,
            themes=THEMES,
            now=datetime.now(UTC),
            here=path_of(request),
            **values,
        )
        response = HTMLResponse(text, status_code=status, headers={"Content-Language": words.language})
        if is_new:
            self.set_cookie(response, session)
        return response

    def set_cookie(self, response: Response, session: Session) -> None:
        """Give the browser its session."""
        response.set_cookie(
            self.access.cookie,
            session.session_id,
            path=self.access.cookie_path,
            httponly=True,
            samesite="strict",
            secure=self.settings.https,
        )


def without_verdict(summary: InspectionSummary) -> InspectionSummary:
    """Return the summary of an inspection without anything that shows the model's verdict."""
    words = ("verdict", "reason", "label", "predicted_label", "explained_because", "explanation_status")
    numbers = ("score", "threshold", "predicted_score", "support_share", "duration_ms")
    said = ("review_decision", "reviewed_verdict")
    nothing = dict.fromkeys((*words, *said), "") | dict.fromkeys(numbers, 0.0)
    return dataclasses.replace(summary, passes=0, **nothing)  # type: ignore[arg-type]


def path_of(connection: HTTPConnection) -> str:
    """Return the path of a request below the desk's base path, as the routes name it."""
    return str(connection.scope["path"]).removeprefix(site_of(connection).settings.path) or "/"


def site_of(request: HTTPConnection) -> Site:
    """Return the site that a request is for."""
    site: Site = request.app.state.site
    return site


async def read_fields(request: Request) -> dict[str, str]:
    """Return the fields of a form; the middleware has limited its length already.

    Raises:
        RefusedError: It is no form.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise RefusedError(400, "error.400")
    try:
        text = (await request.body()).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise RefusedError(400, "error.400") from error
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def see(path: str, **query: Any) -> RedirectResponse:
    """Send the browser to another page after a form, so that a reload sends nothing twice.

    The guard puts the desk's own path before `path`.
    """
    kept = {name: value for name, value in query.items() if value not in (None, "")}
    return RedirectResponse(f"{path}?{urlencode(kept)}" if kept else path, status_code=303)


def local_path(path: str) -> str:
    """Return a path on this site, whatever the input.

    >>> local_path("/queue?line=L1"), local_path("//evil.example/"), local_path("https://evil.example")
    ('/queue?line=L1', '/queue', '/queue')
    """
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_local else "/queue"
