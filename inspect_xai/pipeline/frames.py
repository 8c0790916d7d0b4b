"""Flat tables as Parquet files, for pandas, DuckDB and spreadsheets.

fastparquet is called here and nowhere else: it is no longer developed, and one day something takes its place.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import fastparquet
import pandas as pd


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table; the file is there whole or not at all, also after a power cut.

    Args:
        path: The file; one that stands there is replaced.
        frame: Columns of numbers, times without a zone, or texts.
    """
    texts = {name: "utf8" for name in frame.columns if frame[name].dtype == object}
    draft = path.with_name(f"{path.name}.part")
    fastparquet.write(
        str(draft), frame, compression="ZSTD", write_index=False, object_encoding=texts, stats=True, open_with=open
    )  # fmt: skip  # opened here: fastparquet's own opener takes "::" in a folder's name for a chain of URLs
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def read_frames(paths: Sequence[Path]) -> list[pd.DataFrame]:
    """Read tables, one for each file."""
    frames = []
    for path in paths:
        with path.open("rb") as file:  # given a path, fastparquet leaves the file open
            frames.append(fastparquet.ParquetFile(file).to_pandas())
    return frames
