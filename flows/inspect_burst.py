"""The main job on many processes at once: a burst of pictures, drained by Dask workers that claim side by side.

Needs the extra `dask`. Without a cluster, processes of this machine are started for the run:

python -m flows.inspect_burst line.toml 4
"""

import logging
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from flows.common import gpu_slot, leave_behind, tried_again
from inspect_xai.app import open_line_of, open_source_of
from inspect_xai.line.line import drain
from inspect_xai.settings import load_settings


@flow(name="inspect-burst")
def inspect_burst(settings: str, workers: int = 2, cluster: str = "") -> dict[str, int]:
    """Inspect everything a source holds with several processes; each has its own engine and claims for itself.

    Args:
        settings: The settings file, in the same place on every machine of the cluster.
        workers: Processes that drain the source.
        cluster: Address of a Dask scheduler, as tcp://HOST:8786; empty: processes of this machine.

    Returns:
        The counts of a line's summary, added up.
    """
    from prefect_dask import DaskTaskRunner  # the other flows are deployed where it is not installed

    logging.getLogger("distributed").setLevel(logging.WARNING)
    here = {"n_workers": workers, "threads_per_worker": 1}
    runner = DaskTaskRunner(address=cluster) if cluster else DaskTaskRunner(cluster_kwargs=here)
    added: Counter[str] = Counter()
    for summary in drain_together.with_options(task_runner=runner)(settings, workers):
        added.update({what: number for what, number in summary.items() if isinstance(number, int)})
    leave_behind("inspect-burst", added, summary=f"**{added['inspected']} pictures** by {workers} processes")
    return dict(added)


@flow(name="drain-together")
def drain_together(settings: str, workers: int) -> list[dict[str, Any]]:
    """Let every process drain the source; what one has claimed the others pass over."""
    return [draining.result() for draining in [drain_source.submit(settings) for _ in range(workers)]]


@tried_again("drain-source")
def drain_source(settings: str) -> dict[str, Any]:
    """Drain the source in the process this runs in."""
    chosen = load_settings(Path(settings))
    with open_line_of(chosen) as line, open_source_of(chosen) as source, gpu_slot(line.run.provider):
        return asdict(drain(line, source, chunk=chosen.line.chunk))


if __name__ == "__main__":
    inspect_burst(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
