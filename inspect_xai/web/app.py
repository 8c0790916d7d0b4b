"""The application: pages, pictures and JSON behind one guard."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from inspect_xai import __version__
from inspect_xai.errors import DatabaseAwayError, InspectXaiError, NotFoundError, SettingsError
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.store import open_store
from inspect_xai.web.context import RefusedError, SignInNeededError, Site, path_of, site_of
from inspect_xai.web.i18n import catalog
from inspect_xai.web.middleware import HEADERS, Guard
from inspect_xai.web.routes import api, images, pages, reports, studies

_log = logging.getLogger(__name__)
_REASONS = (
    "WITHIN_LIMIT",
    "DUST",
    "REFLECTION",
    "TOOL_MARK",
    "SURFACE",
    "OVERLOOKED",
    "WRONG_LABEL",
    "BAD_PICTURE",
    "OTHER",
)


def create_app(
    store_url: str, settings: ServeSettings | None = None, *, blob_store: str = "", ledger_key: Path | None = None
) -> FastAPI:
    """Make the review desk of a database.

    Args:
        store_url: URL of the database.
        settings: Of the desk.
        blob_store: Where the maps lie; empty: in the database.
        ledger_key: File of the key that signs the ledger's events; None: they are not signed.

    Raises:
        SettingsError: The desk would be open to a network, or a setting cannot be read.
        StoreError: The database cannot be used.
    """
    store = open_store(store_url, blob_store=blob_store, ledger_key=ledger_key)
    try:
        site = Site(store, settings or ServeSettings())
        _check_path(site.settings.path)
        if not store.reasons():  # a plant without a list of its own begins with ours
            for code in _REASONS:
                store.set_reason(code, catalog(site.settings.language)[f"reason_code.{code}"])
    except BaseException:
        store.close()
        raise

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(
        title="inspect_xai",
        version=__version__,
        summary="Inspections, their explanations and people's answers to them.",
        # The usual documentation pages load their scripts from elsewhere, which a shop floor cannot reach.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.site = site
    app.include_router(pages.router)
    app.include_router(studies.router)
    app.include_router(reports.router)
    app.include_router(images.router)
    app.include_router(api.router)
    app.mount("/static", _Static(packages=[("inspect_xai.web", "static")]))
    app.add_exception_handler(SignInNeededError, _sign_in)
    for kind in (RefusedError, InspectXaiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Guard, access=site.access, refuse=_refuse)
    return app


def _check_path(path: str) -> None:
    """Refuse a path that is one of the desk's own: of "/queue" nobody could say whether the proxy left something out.

    Raises:
        SettingsError: It is.
    """
    routers = (pages.router, studies.router, reports.router, images.router, api.router)
    own = {str(getattr(route, "path", "")).split("/")[1] for router in routers for route in router.routes} | {"static"}
    if path and path.split("/")[1] in own:
        raise SettingsError(
            f"the path {path} begins like a page of the desk",
            expected="a path that no page has, such as /inspect",
            remedy="choose another one for [serve] path, and the same in the proxy",
        )


class _Static(StaticFiles):
    """Style and script; browsers ask whether they changed, so that an update is seen at once."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response


def _is_for_machines(connection: HTTPConnection) -> bool:
    return f"{path_of(connection)}/".startswith(("/api/", "/metrics/"))


def _fault(connection: HTTPConnection, status: int, key: str, detail: str = "") -> JSONResponse:
    """Return an error in the form of docs/reference/api.md: its kind, and a sentence."""
    words = site_of(connection).words(connection)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": key, "message": detail or words(key)}, status_code=status, headers=headers)


async def _refuse(connection: HTTPConnection, status: int, key: str) -> ASGIApp:
    """Answer a request that the guard does not let in; plainly, since nothing is known of who sent it."""
    if _is_for_machines(connection):
        return _fault(connection, status, key)
    # Without a template: a flood must not cost more than a line of text, nor begin sessions.
    return Response(site_of(connection).words(connection)(key), status_code=status, media_type="text/plain")


async def _sign_in(request: Request, _: Exception) -> Response:
    site = site_of(request)
    if _is_for_machines(request):
        return _fault(request, 401, "error.401")
    if request.method != "GET" or path_of(request).endswith((".png", ".svg")):
        return site.page(request, "error.html", status=401, message=site.words(request)("error.401"), detail="")
    there = path_of(request) + (f"?{request.url.query}" if request.url.query else "")
    return Response(status_code=303, headers={"Location": f"/signin?next={quote(there, safe='/')}"})


async def _failed(request: Request, error: Exception) -> Response:
    site = site_of(request)
    status, key = _status_of(error)
    detail = str(error) if isinstance(error, InspectXaiError) and status in (404, 422) else ""
    try:
        if _is_for_machines(request):
            response: Response = _fault(request, status, key, detail or _wrong_fields(error, site.words(request)(key)))
        else:
            response = site.page(request, "error.html", status=status, message=site.words(request)(key), detail=detail)
    except Exception:  # noqa: BLE001 (what made the page fail may make this one fail too; a sentence needs nothing)
        _log.error("the page of an error failed", exc_info=True)
        sentence = catalog(site.settings.language)[key]
        if _is_for_machines(request):
            response = JSONResponse({"error": key, "message": sentence}, status_code=status)
        else:
            response = Response(sentence, status_code=status, media_type="text/plain")
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)  # the methods that a path takes
    if status == 500:  # made outside of the guard; the server's log has the trace
        # The server closes the connection after a fault of ours; who asks must know, or their next request fails too.
        response.headers.update({**HEADERS, "Connection": "close"})
    return response


def _wrong_fields(error: Exception, sentence: str) -> str:
    """Name the parameters that were wrong and how; empty for other errors."""
    if not isinstance(error, RequestValidationError):
        return ""
    # The last part of a place is the parameter's name; what was sent is not repeated.
    problems = [f"{each['loc'][-1] if each['loc'] else ''}: {each['msg']}" for each in error.errors()[:5]]
    return f"{sentence} {'; '.join(problems)}."


def _status_of(error: Exception) -> tuple[int, str]:
    if isinstance(error, RefusedError):
        return error.status, error.key
    if isinstance(error, HTTPException):
        status = error.status_code
        return (status, f"error.{status}") if status in (401, 403, 404, 405) else (400, "error.400")
    if isinstance(error, RequestValidationError):
        return 422, "error.422"
    if isinstance(error, NotFoundError):
        return 404, "error.404"
    return (503, "error.503") if isinstance(error, DatabaseAwayError) else (500, "error.500")
