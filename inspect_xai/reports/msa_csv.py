"""Attribute agreement studies as CSV files: one row per answer, to be filled in by hand or by a spreadsheet.

    part,picture,reference,appraiser,trial,answer
    SN000042,archive/...png,NG,Ada,1,NG

Parts carry the reference that experts agreed on; `answer` is what the appraiser said in that trial. The sheet that
`create` writes has an empty reference and answer in every row and each appraiser's parts in a new order per trial.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from inspect_xai.errors import StudyError
from inspect_xai.files import read_table
from inspect_xai.records import StudyRating
from inspect_xai.storage import studies
from inspect_xai.storage.store import Store

COLUMNS: Final = ("part", "picture", "reference", "appraiser", "trial", "answer")
_CHUNK: Final = 1000


def create(store: Store, *, parts: int, appraisers: Sequence[str], trials: int, seed: int) -> list[StudyRating]:
    """Draw parts for a study from the record and write down who judges which when, as a study on the desk would.

    Raises:
        StudyError: The record has too few flagged or passed parts, or nobody is to appraise.
    """
    chosen = studies.draw(store, parts=parts, seed=seed)
    return [
        StudyRating(chosen[at].serial, chosen[at].archived_to, "", who, str(trial), "")
        for (who, trial), order in studies.orders(len(chosen), appraisers, trials=trials, seed=seed).items()
        for at in order
    ]


def read_wide(file: Path) -> list[StudyRating]:
    """Read a table with a row per part: `part`, `reference`, then a column per appraiser and trial, named "Ada 1".

    Raises:
        StudyError: A column or a value is missing.
    """
    rows = _rows(file, needed=("part", "reference"))
    answers = []
    for row in rows:
        for column, answer in row.items():
            if column in ("part", "reference", "picture"):
                continue
            who, _, trial = column.rpartition(" ")
            if not who or not trial.isdecimal():
                raise StudyError(f"{file} has a column {column!r}", expected='a name and a trial, like "Ada 1"')
            answers.append(StudyRating(row["part"], row.get("picture", ""), row["reference"], who, trial, answer))
    return answers


def read(file: Path) -> list[StudyRating]:
    """Read a study, one row per answer.

    Raises:
        StudyError: It is no such table.
    """
    needed = [name for name in COLUMNS if name != "picture"]
    return [StudyRating(**{name: row.get(name, "") for name in COLUMNS}) for row in _rows(file, needed=needed)]


def write(file: Path, answers: Iterable[StudyRating]) -> None:
    """Write a study; what stands there stays, since it may hold answers.

    Raises:
        StudyError: The file stands there already.
    """
    try:
        with file.open("x", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([getattr(each, name) for name in COLUMNS] for each in answers)
    except OSError as error:
        raise StudyError(f"{file} cannot be written: {error.strerror}", remedy="name another file") from error


def with_model(answers: Sequence[StudyRating], store: Store) -> list[StudyRating]:
    """Add the model as one more appraiser: its newest verdict on each part, once.

    Raises:
        StudyError: A part is not in the record.
    """
    added = []
    for part, first in _first_of_each_part(answers).items():
        found = store.find(serial=part, limit=_CHUNK)
        found = [row for row in found if not first.picture or row.archived_to == first.picture] or found
        if not found:
            raise StudyError(f"part {part} was never inspected", remedy="leave it out, or analyze without the model")
        added.append(StudyRating(part, first.picture, first.reference, studies.MODEL, "1", found[0].verdict))
    return [*answers, *added]


def _first_of_each_part(answers: Iterable[StudyRating]) -> dict[str, StudyRating]:
    found: dict[str, StudyRating] = {}
    for each in answers:
        found.setdefault(each.part, each)
    return found


def _rows(file: Path, *, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        columns, rows = read_table(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StudyError(f"{file} cannot be read: {error}", remedy="save it as CSV, UTF-8") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise StudyError(f"{file} has no column {', '.join(missing)}", expected=f"{', '.join(needed)}")
    if not rows:
        raise StudyError(f"{file} has no rows")
    return [row for _, row in rows]
