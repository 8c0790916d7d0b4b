"""An audit as one HTML page that needs nothing beside it, and as audit.json for machines.

OUT/report.html   the answer first, then what it rests on; pictures inside, no scripts, nothing loaded from anywhere
OUT/audit.json    the same numbers
"""

import base64
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from inspect_xai import __version__
from inspect_xai.audit.conclusions import METRICS, RULE, AuditReport, CohortMap, Suspect, cohort_maps, pareto
from inspect_xai.audit.dataset import LabelledPicture, read_truth
from inspect_xai.audit.run import Audit
from inspect_xai.audit.sanity import FUSED, GATE
from inspect_xai.errors import InspectXaiError
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import color
from inspect_xai.maths.regions import find_regions
from inspect_xai.records import Baseline, PictureLimits
from inspect_xai.reports import html, labels
from inspect_xai.reports.charts import Priced, cost_chart

SCHEMA_VERSION = 1
MOST_BYTES = 5_000_000
_THUMBNAIL_PX = (300, 380)
_COHORT_PX = 128
_MOST_COHORTS = 24
_JPEG_QUALITY = 80
_DEFECT_COLOR = (0, 229, 255)  # far from every color of the map

ANSWERS = {
    "yes": "Yes: it looks at the defect.",
    "mostly": "Mostly: it looks at the defect in most pictures; in the others it does not, or that is not shown.",
    "no": "No: it is not the defect that the score hangs on.",
    "undecided": "Undecided: the pictures do not allow an answer.",
}

_TABLES = (
    (
        "Does the map lie on the defect?",
        ("aupro", "aupro_window", "ebpg", "bbox", "miou", "pointing", "inside", "border"),
        "AUPRO@0.3: how early the map finds each defect, small or large; 0.15 is chance where a map covers the "
        "picture. EBPG: share of the map on the defect. Bbox: of as many top pixels as the defect has, the share that "
        "hits it. mIoU@20 %: likeness of the top fifth of the pixels and the defect. Pointing: the first pixel does.",
    ),
    (
        "Does the score live where the map says?",
        ("road", "adcc", *(f"drop_{f}" for f in Baseline), *(f"increase_{f}" for f in Baseline)),
        "ROAD: what is left of the score without the least relevant pixels, against without the most relevant ones; 0 "
        "is chance. Drop %: share of the score lost when only the top 15 % of the pixels are shown. Increase %: "
        "pictures whose score that raises. Black, mean, blur: what stands where something is hidden.",
    ),
    (
        "Pixel by pixel: area under the curves",
        (*(f"insertion_{f}" for f in Baseline), *(f"deletion_{f}" for f in Baseline)),
        "The score while pixels come (insertion) or go (deletion) in the map's order, on the average.",
    ),
)


_REGIONS = {
    "auto": "separated from the background where the picture's edge shows one, else the whole picture",
    "picture": "the whole picture",
}


@dataclass(frozen=True, slots=True)
class WrittenAudit:
    """Where an audit's page and numbers are."""

    page: Path
    numbers: Path


@dataclass(frozen=True, slots=True)
class _Shown:
    """One suspect as the page shows it; pictures are data URIs, empty where `missing` says why."""

    suspect: Suspect
    picture: str
    overlay: str
    missing: str


def write_audit(audit: Audit, report: AuditReport, *, command: str) -> WrittenAudit:
    """Write the page and the numbers into the audit's folder; what stood there is replaced.

    Args:
        audit: With its rows and maps.
        report: What was found.
        command: That runs this audit again.
    """
    numbers = audit.folder / "audit.json"
    page = audit.folder / "report.html"
    _put(numbers, json.dumps(as_plain(audit, report), indent=2, allow_nan=False) + "\n")
    _put(page, _render(audit, report, command=command))
    return WrittenAudit(page, numbers)


def as_plain(audit: Audit, report: AuditReport) -> dict[str, Any]:
    """Return an audit's report as plain values: numbers, texts, lists and tables."""
    found = asdict(report)
    found["confusion"] = [
        {"label": true, "predicted": said, "pictures": count} for (true, said), count in report.confusion.items()
    ]
    found["suspects"] = [
        {
            "image": suspect.row.image,
            "label": suspect.row.label,
            "accused": suspect.accused,
            "strays": suspect.strays,
            "why": suspect.why,
        }
        for suspect in report.suspects
    ]
    return {"schema_version": SCHEMA_VERSION, "made_with": audit.header, "rule": RULE} | found


def _put(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)


def _render(audit: Audit, report: AuditReport, *, command: str) -> str:
    named = {metric.key: metric for metric in METRICS}
    cohorts, labeled = cohort_maps(audit), audit.labeled()
    return (
        html.environment()
        .get_template("audit.html")
        .render(
            audit=audit,
            report=report,
            answers=ANSWERS,
            rule=RULE,
            gate=GATE,
            fused=FUSED,
            labels=[label for label in audit.header["labels"] if any(label in pair for pair in report.confusion)],
            tables=[
                (title, metrics, meaning)
                for title, keys, meaning in _TABLES
                if (metrics := _measured(report, keys, named))
            ],
            plot=_plot(report),
            shown=[_show(audit, suspect, labeled.get(suspect.row.image)) for suspect in report.suspects],
            cohorts=[(cohort, _cohort_picture(cohort)) for cohort in cohorts[:_MOST_COHORTS]],
            more_cohorts=max(0, len(cohorts) - _MOST_COHORTS),
            no_cause=labels.NO_CAUSE,
            region=_REGIONS.get(audit.header["settings"]["region"], f"where {audit.header['settings']['region']} says"),
            notes=_notes(audit),
            command=command,
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            version=__version__,
            settings=_made_with(audit),
        )
    )


def _made_with(audit: Audit) -> dict[str, str]:
    """Return what the audit was made with as lines for people."""
    header = audit.header
    model = header["model"]
    lines = {
        "model": f"{model['name']} {model['version']}",
        "fingerprint": model["fingerprint"],
        "pictures": f"{header['pictures']} of {header['table']}",
        "table sha256": header["table_sha256"],
        "provider": header["provider"],
    }
    lines |= {key: _said(value) for key, value in header["settings"].items() if value not in (None, "")}
    return lines | {f"version of {name}": value for name, value in header["versions"].items()}


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, list) else str(value)


def _measured(report: AuditReport, keys: tuple[str, ...], named: dict[str, Any]) -> list[Any]:
    return [named[key] for key in keys if any(key in method.cells for method in report.methods)]


def _notes(audit: Audit) -> list[tuple[str, str, int]]:
    """Say what a reader of the maps must know: method, note in words, pictures."""
    counts: dict[tuple[str, str], int] = {}
    for row in audit.rows:
        for measured in row.measured:
            for note in measured.notes:
                key = str(measured.method), labels.note_in_words(note)
                counts[key] = counts.get(key, 0) + 1
    order = [str(method) for method in audit.methods]
    return [
        (method, note, count)
        for (method, note), count in sorted(counts.items(), key=lambda item: order.index(item[0][0]))
    ]


def _plot(report: AuditReport) -> Markup | None:
    """Draw cost against quality by the first metric there is; the front joins those that no other beats in both."""
    key = next((key for key in ("aupro", "road") if any(key in method.cells for method in report.methods)), None)
    if key is None:
        return None
    measured = [method for method in report.methods if key in method.cells]
    points = [
        Priced(each.method.value, max(each.seconds, 1e-3), each.cells[key].average.mean, each.knows_nothing)
        for each in measured
    ]
    name = next(metric.name for metric in METRICS if metric.key == key)
    return cost_chart(
        points,
        quality=f"{name}, mean over {report.explained} pictures",
        front=pareto((each.seconds, each.quality) for each in points if not each.knows_nothing),
    )


def _show(audit: Audit, suspect: Suspect, labeled: LabelledPicture | None) -> _Shown:
    row = suspect.row
    path = audit.pictures / row.image
    reduced = audit.maps(row).get(str(audit.methods[0]))
    try:
        pixels = read_picture(path, limits=audit.limits).pixels
    except (InspectXaiError, OSError) as error:
        return _Shown(suspect, "", "", f"the picture is not there any more: {error}")
    overlay = ""
    if reduced is not None:
        fused = np.asarray(cv2.resize(reduced, (pixels.shape[1], pixels.shape[0])), np.float32)
        overlay = _jpeg(color.overlay(pixels, fused, regions=find_regions(fused)))
    return _Shown(
        suspect, _jpeg(_with_truth(labeled, pixels, limits=audit.limits)), overlay, "" if overlay else "there is no map"
    )


def _with_truth(
    labeled: LabelledPicture | None, pixels: NDArray[np.uint8], *, limits: PictureLimits
) -> NDArray[np.uint8]:
    """Return the picture with the defect's outline on it where its place is known."""
    shown = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()
    truth = None if labeled is None else _truth(labeled, (pixels.shape[0], pixels.shape[1]), limits=limits)
    if truth is not None:
        outlines, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        shown = np.ascontiguousarray(shown)
        cv2.drawContours(shown, outlines, -1, _DEFECT_COLOR, thickness=max(1, round(min(truth.shape) / 200)))
    return np.asarray(shown, np.uint8)


def _truth(labeled: LabelledPicture, size: tuple[int, int], *, limits: PictureLimits) -> NDArray[np.bool_] | None:
    try:
        return read_truth(labeled, size, limits=limits)
    except (InspectXaiError, OSError):
        return None


def _cohort_picture(cohort: CohortMap) -> str:
    painted = color.color_map(cohort.mean)
    return _jpeg(np.asarray(cv2.resize(painted, (_COHORT_PX, _COHORT_PX), interpolation=cv2.INTER_LINEAR), np.uint8))


def _jpeg(picture: NDArray[np.uint8]) -> str:
    rows, columns = picture.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX[0] / rows, _THUMBNAIL_PX[1] / columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
