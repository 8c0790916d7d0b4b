"""What all flows share: retries, turns on the GPU, and the artifacts of a run."""

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from inspect_xai.errors import DatabaseAwayError

P = ParamSpec("P")
R = TypeVar("R")

# The product tries again by itself for some ten seconds; this outlasts a database that restarts or is upgraded.
BACK_OFF_S: list[float] = [30, 120, 600]


def tried_again(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a task that is run again while the database is away, and at no other trouble.

    Nothing is cached: what these tasks do stands in the database, and its uniqueness keeps it from being done twice.
    """
    return task(
        name=name,
        retries=len(BACK_OFF_S),
        retry_delay_seconds=BACK_OFF_S,
        retry_condition_fn=_database_is_away,
        cache_policy=NO_CACHE,
    )


def _database_is_away(_task: object, _run: object, state: Any) -> bool:
    """Return whether another try can help: only then are all files where they were, and what is recorded is known."""
    return isinstance(state.result(raise_on_failure=False), DatabaseAwayError)


def gpu_slot(provider: str) -> AbstractContextManager[None]:
    """Take this machine's turn on its GPU: the concurrency limit `gpu-HOSTNAME`, where the plant has made one.

        prefect gcl create gpu-$(hostname) --limit 1

    Args:
        provider: The execution provider in use; on a CPU there is nothing to wait for.
    """
    if provider == "CPUExecutionProvider":
        return nullcontext()
    return concurrency(f"gpu-{socket.gethostname().lower()}", occupy=1)


def leave_behind(name: str, facts: Mapping[str, Any], *, summary: str, link: str = "") -> None:
    """Leave a table, a summary and, where there is one, a link beside the flow run.

    Args:
        name: Of the flow; begins the artifacts' keys.
        facts: What is put in the table, a row each.
        summary: One paragraph of markdown.
        link: Address of a page that browsers reach; of a file on this machine they follow no link.
    """
    create_table_artifact([{"what": what, "value": str(value)} for what, value in facts.items()], key=f"{name}-numbers")
    create_markdown_artifact(summary, key=f"{name}-summary")
    if link:
        create_link_artifact(link, key=f"{name}-page", link_text=link)
