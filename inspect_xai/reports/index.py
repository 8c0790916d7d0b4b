"""The reports that stand in a folder, newest first: for the web app and for those who answer alarms."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ShelvedReport:
    """One report of the folder: its name is that of its own folder."""

    name: str
    page: Path
    title: str
    summary: str
    inspections: int
    ng: int
    unsure: int
    alarms: tuple[dict[str, Any], ...]


def reports_in(folder: Path, *, most: int = 60) -> list[ShelvedReport]:
    """List the newest reports; half-written ones, other files and older versions are left out."""
    if not folder.is_dir():
        return []
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), reverse=True)
    found = []
    for name in names:
        report = _report(folder / name)
        if report is not None:
            found.append(report)
        if len(found) == most:
            break
    return found


def _report(folder: Path) -> ShelvedReport | None:
    try:
        if (folder / "report.json").stat().st_size > _MOST_BYTES or not (folder / "manifest.json").is_file():
            return None
        numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        period = numbers["period"]
        span = period["first"] if period["first"] == period["last"] else f"{period['first']} to {period['last']}"
        return ShelvedReport(
            name=folder.name,
            page=folder / "report.html",
            title=f"{span}, {period['shift']}" if period["shift"] else span,
            summary=(folder / "summary.txt").read_text(encoding="utf-8").strip(),
            inspections=int(manifest["inspections"]),
            ng=int(manifest["ng"]),
            unsure=int(manifest["unsure"]),
            alarms=tuple(alarm for alarm in numbers["alarms"] if "alarm_id" in alarm),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
