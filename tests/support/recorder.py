"""Record inspections until killed, as a process: python -m tests.support.recorder URL BLOBS FROM TO."""

import sys

import numpy as np

from benchmarks.support import stored
from inspect_xai.records import Explanation
from inspect_xai.storage.store import open_store

CHUNK = 4


def explanation_of(number: int) -> Explanation:
    """Return the same for the same picture, whoever makes it."""
    return stored.explanation(np.random.default_rng(number))


def main(url: str, blob_store: str, first: int, last: int) -> None:
    """Record pictures `first` to `last` in chunks, telling of each chunk that is in."""
    with open_store(url, blob_store=blob_store) as store:
        stored.prepared(store)
        for start in range(first, last, CHUNK):
            numbers = range(start, min(start + CHUNK, last))
            store.record([stored.inspection(number, explained=explanation_of(number)) for number in numbers])
            sys.stdout.write(f"{numbers.stop}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
