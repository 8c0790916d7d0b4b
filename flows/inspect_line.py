"""The main job as a Prefect flow: one task for each claim of pictures, tried again while the database is away.

python -m flows.inspect_line line.toml
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.common import gpu_slot, leave_behind, tried_again
from inspect_xai.app import open_line_of, open_source_of, stopped_by_signals
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.sources import Claim
from inspect_xai.intake.url_source import Source
from inspect_xai.line.line import Line, Outcome, drain
from inspect_xai.settings import load_settings


@flow(name="inspect-line")
def inspect_line(
    settings: str | None = None, source: str | None = None, bundle: str | None = None, db: str | None = None
) -> dict[str, Any]:
    """Inspect everything a source holds; what is not given comes from the settings file or the environment.

    Asked to stop (SIGTERM), it finishes the picture at work, records what is done and gives its other claims back.
    """
    file = Path(settings) if settings else None
    chosen = load_settings(file, db=db, bundle=bundle, line={"source": source})
    with open_line_of(chosen) as line, open_source_of(chosen) as pictures, stopped_by_signals() as stop:
        inspect = _chunk_task(line, pictures, stop)
        summary = asdict(drain(line, pictures, chunk=chosen.line.claim_size, stop=stop, inspect=inspect))
    if summary["seen"]:  # most runs find nothing new
        leave_behind("inspect-line", summary, summary=_in_words(summary, stopped=stop.is_set()))
    return summary


def _chunk_task(line: Line, source: Source, stop: threading.Event) -> Callable[[list[Claim]], list[Outcome]]:
    """Make what inspects a chunk on this process's own engine and connections, and says how far the run is."""

    @tried_again("inspect-chunk")
    def inspect_chunk(claims: list[Claim]) -> list[Outcome]:
        with gpu_slot(line.run.provider):
            return line.inspect(source, claims, after_each=stop.is_set, stopped=stop.is_set)

    total = source.count() if isinstance(source, FolderSource) else 0
    progress = create_progress_artifact(0.0, key="inspect-line-progress") if total else None
    done = 0

    def inspect(claims: list[Claim]) -> list[Outcome]:
        nonlocal done
        outcomes = inspect_chunk(claims)
        done += len(outcomes)
        if progress is not None:
            update_progress_artifact(progress, min(100.0, 100.0 * done / total), f"{done} of {total} pictures")
        return outcomes

    return inspect


def _in_words(summary: dict[str, Any], *, stopped: bool) -> str:
    found = f"**{summary['inspected']} pictures inspected**: {summary['ok']} OK, {summary['ng']} NG, "
    rest = f"{summary['unsure']} UNSURE; {summary['failed']} could not be judged or explained."
    return found + rest + (" Stopped by a signal: the rest was given back." if stopped else "")


if __name__ == "__main__":
    inspect_line(sys.argv[1] if len(sys.argv) > 1 else None)
