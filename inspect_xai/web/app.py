"""The application: pages, pictures and JSON behind one guard."""

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
from inspect_xai.errors import DatabaseAwayError, InspectXaiError, NotFoundError
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.store import open_store
from inspect_xai.web import api, images, pages, reports, studies
from inspect_xai.web.guard import HEADERS, Guard
from inspect_xai.web.site import RefusedError, SignInNeededError, Site, site_of
from inspect_xai.web.words import catalogue

_REASONS = (
    "WITHIN_LIMIT", "DUST", "REFLECTION", "TOOL_MARK", "SURFACE", "OVERLOOKED", "WRONG_LABEL", "BAD_PICTURE", "OTHER",
)  # fmt: skip


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
        if not store.reasons():  # a plant without a list of its own begins with ours
            for code in _REASONS:
                store.set_reason(code, catalogue(site.settings.language)[f"reason_code.{code}"])
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


class _Static(StaticFiles):
    """Style and script; browsers ask whether they changed, so that an update is seen at once."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response


def _is_for_machines(request: HTTPConnection) -> bool:
    return request.url.path.startswith(("/api/", "/metrics"))


async def _refuse(connection: HTTPConnection, status: int, key: str) -> ASGIApp:
    """Answer a request that the guard does not let in; plainly, since nothing is known of who sent it."""
    if _is_for_machines(connection):
        return JSONResponse({"error": key.partition(".")[2]}, status_code=status)
    # Without a template: a flood must not cost more than a line of text, nor begin sessions.
    return Response(site_of(connection).words(connection)(key), status_code=status, media_type="text/plain")


async def _sign_in(request: Request, _: Exception) -> Response:
    site = site_of(request)
    if _is_for_machines(request):
        return JSONResponse({"error": "401"}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
    if request.method != "GET" or request.url.path.endswith((".png", ".svg")):
        return site.page(request, "error.html", status=401, message=site.words(request)("error.401"), detail="")
    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return Response(status_code=303, headers={"Location": f"/signin?next={quote(there, safe='/')}"})


async def _failed(request: Request, error: Exception) -> Response:
    site = site_of(request)
    status, key = _status_of(error)
    detail = str(error) if isinstance(error, InspectXaiError) and status in (404, 422) else ""
    if _is_for_machines(request):
        kind = key if isinstance(error, RefusedError) else type(error).__name__
        response: Response = JSONResponse({"error": kind, "message": detail or key}, status_code=status)
    else:
        response = site.page(request, "error.html", status=status, message=site.words(request)(key), detail=detail)
    if status == 500:  # made outside of the guard; the server's log has the trace
        response.headers.update(HEADERS)
    return response


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
