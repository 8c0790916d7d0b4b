"""Attribute agreement studies as CSV files: one row per answer, to be filled in by hand or by a spreadsheet.

    part,picture,reference,appraiser,trial,answer
    SN000042,archive/...png,NG,Ada,1,NG

Parts carry the reference that experts agreed on; `answer` is what the appraiser said in that trial. The sheet that
`create` writes has an empty reference and answer in every row and each appraiser's parts in a new order per trial.
"""

import csv
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from inspect_xai.errors import StudyError
from inspect_xai.maths.agreement import Agreement, attribute_agreement
from inspect_xai.records import VerdictCode
from inspect_xai.storage.store import Store

COLUMNS: Final = ("part", "picture", "reference", "appraiser", "trial", "answer")
MODEL: Final = "model"
"""The appraiser's name under which the verdicts of the record sit in a study."""

_CHUNK: Final = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a study."""

    part: str
    picture: str
    reference: str
    appraiser: str
    trial: str
    answer: str


def create(store: Store, *, parts: int, appraisers: Sequence[str], trials: int, seed: int) -> list[Answer]:
    """Draw parts for a study from the record: half flagged, half passed, in a new order for each appraiser and trial.

    AIAG wants good, bad and borderline parts in about equal numbers; the line's own share of defects would
    leave nothing to miss.

    Raises:
        StudyError: The record has too few flagged or passed parts, or nobody is to appraise.
    """
    if parts < 2 or trials < 1 or not appraisers or len(set(appraisers)) < len(appraisers):
        raise StudyError(
            f"{parts} parts, {len(appraisers)} appraisers, {trials} trials",
            expected="two parts or more, appraisers with different names, and a trial",
        )
    rng = np.random.default_rng(seed)
    groups = [["NG", "UNSURE"], ["OK"]]
    wanted = [parts // 2, parts - parts // 2]
    chosen: list[tuple[str, str]] = []
    for verdicts, count in zip(groups, wanted, strict=True):
        rows = [row for verdict in verdicts for row in store.find(verdict=verdict, limit=_CHUNK) if row.archived_to]
        pool = sorted({row.serial: row.archived_to for row in rows}.items() - chosen)
        if len(pool) < count:
            raise StudyError(
                f"{len(pool)} parts judged {' or '.join(verdicts)} with a picture in the record",
                expected=f"{count}",
                remedy="take fewer parts, or let the line run longer",
            )
        chosen += [pool[at] for at in rng.choice(len(pool), count, replace=False)]
    return [
        Answer(chosen[at][0], chosen[at][1], "", who, str(trial), "")
        for who, trial in itertools.product(appraisers, range(1, trials + 1))
        for at in rng.permutation(len(chosen))
    ]


def read_wide(file: Path) -> list[Answer]:
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
            answers.append(Answer(row["part"], row.get("picture", ""), row["reference"], who, trial, answer))
    return answers


def read(file: Path) -> list[Answer]:
    """Read a study, one row per answer.

    Raises:
        StudyError: It is no such table.
    """
    needed = [name for name in COLUMNS if name != "picture"]
    return [Answer(**{name: row.get(name, "") for name in COLUMNS}) for row in _rows(file, needed=needed)]


def write(file: Path, answers: Iterable[Answer]) -> None:
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


def with_model(answers: Sequence[Answer], store: Store) -> list[Answer]:
    """Add the model as one more appraiser: its newest verdict on each part, once.

    Raises:
        StudyError: A part is not in the record.
    """
    added = []
    for part, first in _first_of_each_part(answers).items():
        found = store.find(serial=part, limit=_CHUNK)
        found = [row for row in found if not first.picture or row.archived_to == first.picture] or found
        if not found:
            raise StudyError(f"part {part} was never inspected", remedy="leave it out, or analyse without the model")
        added.append(Answer(part, first.picture, first.reference, MODEL, "1", found[0].verdict))
    return [*answers, *added]


def analyse(answers: Sequence[Answer], *, defect: str = VerdictCode.NG, good: str = VerdictCode.OK) -> Agreement:
    """Turn rows into tables of parts by trials, and analyse them.

    Args:
        answers: All rows of the study, in any order.
        defect: What the study calls a defective part.
        good: What it calls a good one.

    Raises:
        StudyError: A reference or an answer is missing, or two rows contradict each other.
    """
    references: dict[str, str] = {}
    for each in answers:
        if references.setdefault(each.part, each.reference) != each.reference:
            raise StudyError(f"part {each.part} has the references {references[each.part]!r} and {each.reference!r}")
    given: dict[tuple[str, str, str], str] = {}
    for each in answers:
        place = (each.appraiser, each.part, each.trial)
        if place in given:
            raise StudyError(f"{each.appraiser} answered twice for part {each.part} in trial {each.trial}")
        given[place] = each.answer
    people = list(dict.fromkeys(each.appraiser for each in answers))
    tables = {}
    for who in people:
        trials = sorted({trial for one, _, trial in given if one == who})
        tables[who] = np.array([[given.get((who, part, trial), "") for trial in trials] for part in references], object)
    return attribute_agreement(tables, np.array(list(references.values()), object), defect=defect, good=good)


def _first_of_each_part(answers: Iterable[Answer]) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for each in answers:
        found.setdefault(each.part, each)
    return found


def _rows(file: Path, *, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # spreadsheets put a mark in front
            table = csv.DictReader(opened, strict=True, restval="")
            missing = [name for name in needed if name not in (table.fieldnames or ())]
            if missing:
                raise StudyError(f"{file} has no column {', '.join(missing)}", expected=f"{', '.join(needed)}")
            rows = []
            for row in table:
                if None in row:
                    raise StudyError(f"line {table.line_num} of {file} has more values than columns")
                rows.append({name.strip(): value.strip() for name, value in row.items()})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{file} cannot be read: {error}", remedy="save it as CSV, UTF-8, with commas") from error
    if not rows:
        raise StudyError(f"{file} has no rows")
    return rows
