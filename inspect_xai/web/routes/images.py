"""Pictures and maps by the id of their inspection, never by a path."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from inspect_xai.errors import NotFoundError
from inspect_xai.maths import color
from inspect_xai.storage.results import StoredExplanation, StoredInspection
from inspect_xai.web import rendering
from inspect_xai.web.context import Site, site_of

router = APIRouter(prefix="/inspections/{inspection_id}", include_in_schema=False)
InspectionId = Annotated[int, Path(ge=1, le=2**63 - 1)]
_ASK_AGAIN = "private, no-cache"
"""Browsers keep a picture but ask each time whether they may still show it: retention may have deleted it."""


@router.get("/picture.png")
def picture(request: Request, inspection_id: InspectionId) -> Response:
    """Return the picture as it was judged, encoded again: no byte of the camera's file reaches the browser."""
    return _drawn(request, inspection_id, "picture", lambda site, given: rendering.png(site.archive.read(given)))


@router.get("/thumbnail.png")
def thumbnail(request: Request, inspection_id: InspectionId) -> Response:
    """Return the picture, small."""
    return _drawn(
        request,
        inspection_id,
        "thumbnail",
        lambda site, given: rendering.png(rendering.thumbnail(site.archive.read(given))),
    )


@router.get("/map.png")
def fused(request: Request, inspection_id: InspectionId) -> Response:
    """Return the explanation map, to be laid over the picture."""
    return _drawn(
        request, inspection_id, "map", lambda site, _: rendering.png(rendering.layer(_map(site, inspection_id)[1]))
    )


@router.get("/overlay.png")
def overlay(request: Request, inspection_id: InspectionId) -> Response:
    """Picture and map in one, for reports and mails."""

    def draw(site: Site, given: StoredInspection) -> bytes:
        explanation, values = _map(site, inspection_id)
        return rendering.png(color.overlay(site.archive.read(given), values, regions=explanation.regions))

    return _drawn(request, inspection_id, "overlay", draw)


@router.get("/outlines.svg")
def outlines(request: Request, inspection_id: InspectionId) -> Response:
    """Return the outlines of the marked regions."""

    def draw(site: Site, _: StoredInspection) -> bytes:
        explanation, values = _map(site, inspection_id)
        return rendering.outlines(values, explanation.regions)

    return _drawn(request, inspection_id, "outlines", draw, media_type="image/svg+xml")


@router.get("/block-{number}.png")
def block(request: Request, inspection_id: InspectionId, number: Annotated[int, Path(ge=1, le=999)]) -> Response:
    """Return the map of one block, counted from the shallowest, to be laid over the picture."""

    def draw(site: Site, given: StoredInspection) -> bytes:
        blocks = rendering.blocks_shown(given.explanation)
        if number > len(blocks):
            raise NotFoundError(f"inspection {inspection_id} has maps of {len(blocks)} blocks")
        stored = site.store.get(inspection_id, maps=True)
        return rendering.png(rendering.layer(rendering.block_map(stored, blocks[number - 1])))

    return _drawn(request, inspection_id, f"block-{number}", draw)


def _map(site: Site, inspection_id: int) -> tuple[StoredExplanation, "rendering.Map"]:
    explanation = site.store.get(inspection_id, maps=True).explanation
    if explanation is None or explanation.fused is None:
        raise NotFoundError(f"inspection {inspection_id} has no map")
    return explanation, explanation.fused


def _drawn(
    request: Request,
    inspection_id: int,
    kind: str,
    draw: Callable[[Site, StoredInspection], bytes],
    *,
    media_type: str = "image/png",
) -> Response:
    site = site_of(request)
    person = site.person(request)
    is_map = kind not in ("picture", "thumbnail")
    if is_map:
        site.check_uncovered(person, inspection_id)
    given = site.store.get(inspection_id)
    name = rendering.content_name(given.capture.sha256, given.model.fingerprint, given.policy_version)
    tag = f'"{name}-{kind}"'
    if is_map and (given.explanation is None or given.explanation.maps_deleted):
        raise NotFoundError(f"inspection {inspection_id} has no map")
    if kind in ("picture", "thumbnail", "overlay"):
        site.archive.check_there(given)  # before memory is asked
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"Cache-Control": _ASK_AGAIN, "ETag": tag})
    content = site.kept.get(f"{name}-{kind}", lambda: draw(site, given))
    headers = {"Cache-Control": _ASK_AGAIN, "ETag": tag, "Content-Disposition": "inline"}
    return Response(content, media_type=media_type, headers=headers)
