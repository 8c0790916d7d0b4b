"""One day's inspections as a flat Parquet file, for pandas, DuckDB and spreadsheets.

    OUT/inspections/day=2026-11-22/inspections.parquet

The folder's name is the partition, so a reader given OUT/inspections sees a column `day`. Times are UTC without a
zone. fastparquet is called here and nowhere else: it is no longer developed, and one day something takes its place.
"""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, date, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import fastparquet
import pandas as pd

from inspect_xai.pipeline.whole import replaced_folder
from inspect_xai.storage.stored import InspectionSummary

FILE_NAME = "inspections.parquet"
_COLUMN_TYPES: dict[Any, str] = {
    int: "int64", float: "float64", float | None: "float64", str: "object", datetime: "datetime64[us]",
}  # fmt: skip


def write_parquet(rows: Sequence[InspectionSummary], *, day: date, out: Path) -> Path:
    """Write the inspections of one day; a file that stands there is replaced as a whole.

    Args:
        rows: The day's inspections.
        day: In the plant's zone.
        out: Folder of all days.

    Returns:
        The file.
    """
    folder = out / "inspections" / f"day={day.isoformat()}"
    frame = as_frame(rows)
    texts = {name: "utf8" for name in frame.columns if frame[name].dtype == object}
    with replaced_folder(folder) as work:
        fastparquet.write(
            str(work / FILE_NAME), frame, compression="ZSTD", write_index=False, object_encoding=texts, stats=True
        )
    return folder / FILE_NAME


def as_frame(rows: Sequence[InspectionSummary]) -> pd.DataFrame:
    """Return one row per inspection and one column per field, typed alike on a day without any."""
    columns = {}
    for field in dataclasses.fields(InspectionSummary):
        values = list(map(attrgetter(field.name), rows))
        if field.type is datetime:
            values = [value.astimezone(UTC).replace(tzinfo=None) for value in values]
        columns[field.name] = pd.Series(values, dtype=_COLUMN_TYPES[field.type])
    return pd.DataFrame(columns)
