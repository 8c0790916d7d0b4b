"""Pictures on the page: read from the archive, drawn with their map, small, and inside the page itself."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError
from inspect_xai.intake.archive import read_archived
from inspect_xai.maths import color
from inspect_xai.records import PictureLimits, Status
from inspect_xai.storage.results import StoredInspection

_THUMBNAIL_PX = (300, 420)  # most rows and columns of a thumbnail; 120 of them make a page of about 2 MB
_JPEG_QUALITY = 82


def pictures_of(stored: StoredInspection) -> tuple[str, str, str]:
    """Return the picture and its overlay as data URIs; where they are empty the third value gives the reason."""
    explanation = stored.explanation
    picture, missing = archived(stored)
    overlay = ""
    if picture is not None and explanation is not None and explanation.status is Status.EXPLAINED:
        if explanation.fused is None:
            missing = "the map was deleted by retention"
        elif explanation.fused.shape != picture.shape[:2]:
            missing = "the map belongs to a picture of another size"
        else:
            overlay = data_uri(color.overlay(picture, explanation.fused, regions=explanation.regions))
    return "" if picture is None else data_uri(picture), overlay, missing


def archived(stored: StoredInspection) -> tuple[NDArray[np.uint8] | None, str]:
    """Return the picture from the archive as the model saw it, or why there is none."""
    capture = stored.capture
    if not capture.height_px:
        return None, "the file holds no picture"
    try:
        picture = read_archived(capture.archived_to, limits=PictureLimits.recorded(stored.run.settings))
    except PictureError as error:
        return None, f"the picture is missing from the archive: {error}"
    if picture.sha256 != capture.sha256:
        return None, f"the file at {capture.archived_to} is another picture than the one inspected"
    return picture.pixels, ""


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a small JPEG of an RGB or gray picture that stands inside the page."""
    rows, columns = picture.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX[0] / rows, _THUMBNAIL_PX[1] / columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    bgr = small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
