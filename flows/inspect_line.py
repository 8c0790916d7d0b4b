"""The main job as a Prefect flow: one task per chunk of pictures, tried again while the database is away.

python flows/inspect_line.py line.toml
"""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # read when prefect is imported
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from inspect_xai.cli.line import open_line_of, open_source_of
from inspect_xai.errors import DatabaseAwayError
from inspect_xai.pipeline.intake import Claim
from inspect_xai.pipeline.line import Line, Outcome, drain
from inspect_xai.pipeline.remote import Source
from inspect_xai.settings import load_settings

# The line itself tries again for some ten seconds; this outlasts a database that restarts or is upgraded.
BACK_OFF_S: list[float] = [30, 120, 600]


@flow(name="inspect-line")
def inspect_line(
    settings: str | None = None, source: str | None = None, bundle: str | None = None, db: str | None = None
) -> dict[str, Any]:
    """Inspect everything a source holds; what is not given comes from the settings file or the environment."""
    file = Path(settings) if settings else None
    chosen = load_settings(file, db=db, bundle=bundle, line={"source": source})
    with open_line_of(chosen) as line, open_source_of(chosen) as pictures:
        summary = drain(line, pictures, chunk=chosen.line.chunk, inspect=_chunk_task(line, pictures))
    return asdict(summary)


def _chunk_task(line: Line, source: Source) -> Callable[[list[Claim]], list[Outcome]]:
    """Make the task that inspects a chunk on this process's own engine and connections."""

    @task(
        name="inspect-chunk",
        retries=len(BACK_OFF_S),
        retry_delay_seconds=BACK_OFF_S,
        retry_condition_fn=_database_is_away,
        cache_policy=NO_CACHE,
    )
    def inspect_chunk(claims: list[Claim]) -> list[Outcome]:
        return line.inspect(source, claims)

    return inspect_chunk


def _database_is_away(_task: object, _run: object, state: Any) -> bool:
    """Tell whether another try can help: only then is nothing of the chunk recorded, and no file moved."""
    return isinstance(state.result(raise_on_failure=False), DatabaseAwayError)


if __name__ == "__main__":
    inspect_line(sys.argv[1] if len(sys.argv) > 1 else None)
