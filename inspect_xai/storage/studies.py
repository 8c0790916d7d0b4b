"""Attribute agreement studies on the desk: parts x appraisers x trials, in a stored random order, judged blind.

The model sits in each study as an appraiser: what it said of the very pictures of the study is its column.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Select, case, func, insert, select

from inspect_xai.errors import NotFoundError, StudyError
from inspect_xai.records import StudyRating, VerdictCode
from inspect_xai.storage import ledger, queries, tables
from inspect_xai.storage.database import Database
from inspect_xai.storage.ledger_documents import chunks
from inspect_xai.storage.results import InspectionSummary
from inspect_xai.storage.store import Store
from inspect_xai.storage.tables import StudyPart, StudyTask

MODEL: Final = "model"
"""The appraiser's name under which the verdicts of the record sit in a study."""

MOST_TASKS: Final = 20_000
_CHUNK: Final = 1000
_FLAGGED: Final = (VerdictCode.NG, VerdictCode.UNSURE)
_REFERENCE: Final = ("", 0)  # appraiser and trial of the reference: nobody in particular, before all trials


@dataclass(frozen=True, slots=True)
class Study:
    """A study and who is asked."""

    study_id: int
    name: str
    trials: int
    seed: int
    created_at: datetime
    created_by: str
    appraisers: tuple[str, ...]
    parts: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one trial of one appraiser; of the reference, `appraiser` is empty and `trial` 0."""

    appraiser: str
    trial: int
    answered: int
    parts: int


@dataclass(frozen=True, slots=True)
class Task:
    """One part to be judged at its place of a trial."""

    task_id: int
    study_id: int
    appraiser: str
    trial: int
    place: int
    parts: int
    inspection_id: int


def draw(store: Store, *, parts: int, seed: int) -> list[InspectionSummary]:
    """Draw parts for a study from the record: half flagged, half passed, each part once.

    AIAG wants good, bad and borderline parts in about equal numbers; the line's own share of defects would
    leave nothing to miss.

    Raises:
        StudyError: The record has too few flagged or passed parts with a picture.
    """
    if parts < 2:
        raise StudyError(f"{parts} parts", expected="two parts or more")
    rng = np.random.default_rng(seed)
    chosen: dict[str, InspectionSummary] = {}
    for verdicts, count in zip((_FLAGGED, (VerdictCode.OK,)), (parts // 2, parts - parts // 2), strict=True):
        found = [row for verdict in verdicts for row in store.find(verdict=verdict, limit=_CHUNK)]
        pool = {row.serial: row for row in found if row.archived_to and not row.failure_kind}
        names = sorted(pool.keys() - chosen.keys())
        if len(names) < count:
            raise StudyError(
                f"{len(names)} parts judged {' or '.join(verdicts)} with a picture in the record",
                expected=f"{count}",
                remedy="take fewer parts, or let the line run longer",
            )
        chosen |= {names[at]: pool[names[at]] for at in rng.choice(len(names), count, replace=False)}
    return list(chosen.values())


def orders(parts: int, appraisers: Sequence[str], *, trials: int, seed: int) -> dict[tuple[str, int], list[int]]:
    """Draw the order of the parts for each appraiser and trial; the same seed gives the same orders.

    Raises:
        StudyError: Nobody is to appraise, or somebody twice.
    """
    if trials < 1 or not appraisers or len(set(appraisers)) < len(appraisers):
        raise StudyError(
            f"{len(appraisers)} appraisers, {trials} trials", expected="appraisers with different names, and a trial"
        )
    rng = np.random.default_rng([seed, 1])
    turns = itertools.product(appraisers, range(1, trials + 1))
    return {turn: [int(at) for at in rng.permutation(parts)] for turn in turns}


class Studies:
    """The studies of a database. Each call is one transaction; may be shared by threads.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        *,
        appraisers: Sequence[str],
        parts: int = 50,
        trials: int = 3,
        seed: int = 1,
        by: str,
        inspection_ids: Sequence[int] = (),
    ) -> Study:
        """Set up a study: its parts, and in which order each appraiser sees them in each trial.

        Args:
            name: What people call it.
            appraisers: Who judges, by the names they sign in with.
            parts: How many are drawn.
            trials: How often each appraiser sees each part.
            seed: Of the choice and of the orders.
            by: Who sets it up.
            inspection_ids: The parts, where they are not to be drawn.

        Raises:
            StudyError: There are too few parts, appraisers or trials, or too many, or the name is taken.
            NotFoundError: One of the inspections does not exist.
        """
        name = name.strip()
        if not 0 < len(name) <= 60 or not name.isprintable() or name.endswith(".csv"):
            raise StudyError(f"a study cannot be called {name!r}", expected="1 to 60 letters, not the name of a file")
        if MODEL in appraisers or not all(0 < len(each) <= 60 and each.isprintable() for each in appraisers):
            raise StudyError(f"the appraisers {', '.join(appraisers)}", expected=f"people's names; not {MODEL!r}")
        ids = list(dict.fromkeys(inspection_ids)) or [
            row.inspection_id for row in draw(Store(self._database), parts=parts, seed=seed)
        ]
        if not 2 <= len(ids) <= MOST_TASKS / max(1, trials * len(appraisers)):
            raise StudyError(
                f"{len(ids)} parts, {len(appraisers)} appraisers and {trials} trials",
                expected=f"two parts or more, and at most {MOST_TASKS} answers",
            )
        turns = orders(len(ids), appraisers, trials=trials, seed=seed)
        # Drawn too: flagged parts first would reveal the model's verdicts to the person who gives the reference.
        turns[_REFERENCE] = [int(at) for at in np.random.default_rng([seed, 2]).permutation(len(ids))]
        now = self._database.clock()
        with self._database.write() as connection:
            if connection.execute(select(tables.StudyRow.id).where(tables.StudyRow.name == name)).first():
                raise StudyError(f"a study is called {name!r} already", remedy="give it another name")
            _check_inspections(connection, ids)
            study = {"name": name, "trials": trials, "seed": seed, "created_at": now, "created_by": by}
            number = connection.execute(
                insert(tables.StudyRow).values(**study).returning(tables.StudyRow.id)
            ).scalar_one()
            rows = [{"study_id": number, "position": at, "inspection_id": one} for at, one in enumerate(ids)]
            connection.execute(insert(StudyPart), rows)
            tasks = [
                {"study_id": number, "appraiser": who, "trial": trial, "run_order": place, "part_position": at}
                for (who, trial), order in turns.items()
                for place, at in enumerate(order, 1)
            ]
            connection.execute(insert(StudyTask), tasks)
            facts = {"by": by, "appraisers": list(appraisers), "trials": trials, "seed": seed, "inspections": ids}
            ledger.append(connection, "study", name, facts=facts, now=now, made={"study": [number]})
        return self.get(number)

    def all(self) -> list[Study]:
        """List all studies, newest first."""
        with self._database.read() as connection:
            ids = connection.execute(select(tables.StudyRow.id).order_by(tables.StudyRow.id.desc())).scalars().all()
            return [_study(connection, tables.StudyRow.id == number) for number in ids]

    def get(self, study: int | str) -> Study:
        """Return a study by id or name.

        Raises:
            NotFoundError: There is none.
        """
        column: Any = tables.StudyRow.name if isinstance(study, str) else tables.StudyRow.id
        with self._database.read() as connection:
            return _study(connection, column == study)

    def progress(self, study_id: int) -> list[Progress]:
        """Return the progress of the reference and of each trial of each appraiser, the reference first."""
        answered = func.sum(case((_answered(StudyTask.id), 1), else_=0))
        query = (
            select(StudyTask.appraiser, StudyTask.trial, answered, func.count())
            .where(StudyTask.study_id == study_id)
            .group_by(StudyTask.appraiser, StudyTask.trial)
            .order_by(StudyTask.appraiser, StudyTask.trial)
        )
        with self._database.read() as connection:
            return [Progress(who, trial, int(n), parts) for who, trial, n, parts in connection.execute(query)]

    def next_task(self, study_id: int, appraiser: str) -> Task | None:
        """Return the first part of the appraiser's first unfinished trial; None: all are rated.

        Args:
            study_id: Of the study.
            appraiser: Who; the empty name: whoever gives the reference.
        """
        query = (
            _tasks(StudyTask.study_id == study_id, StudyTask.appraiser == appraiser)
            .where(~_answered(StudyTask.id))
            .order_by(StudyTask.trial, StudyTask.run_order)
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Task(*row)

    def task(self, task_id: int) -> Task:
        """Return a part at its place of a trial.

        Raises:
            NotFoundError: There is none.
        """
        with self._database.read() as connection:
            row = connection.execute(_tasks(StudyTask.id == task_id)).one_or_none()
        if row is None:
            raise NotFoundError("there is no such part in a study")
        return Task(*row)

    def answer(self, task: Task, verdict: VerdictCode, *, by: str) -> bool:
        """Append what somebody says of a part; of a trial the first answer counts, and no other is taken.

        Returns:
            Whether it was taken.

        Raises:
            StudyError: Somebody else is asked, or a reference was left open.
        """
        is_reference = (task.appraiser, task.trial) == _REFERENCE
        if not is_reference and by != task.appraiser:
            raise StudyError(f"{by} answers in the place of {task.appraiser}")
        if is_reference and verdict is VerdictCode.UNSURE:
            raise StudyError("a reference that says UNSURE", expected="OK or NG; leave unclear parts out of the study")
        now = self._database.clock()
        with self._database.write() as connection:
            said = select(tables.StudyRatingRow.id).where(tables.StudyRatingRow.task_id == task.task_id)
            if not is_reference and connection.execute(said).first():
                return False
            row = {"task_id": task.task_id, "verdict": verdict.value, "answered_by": by, "answered_at": now}
            made = insert(tables.StudyRatingRow).values(**row).returning(tables.StudyRatingRow.id)
            number = connection.execute(made).scalar_one()
            facts = {
                "by": by,
                "appraiser": task.appraiser,
                "trial": task.trial,
                "place": task.place,
                "inspection": task.inspection_id,
                "verdict": verdict.value,
            }
            name = connection.execute(
                select(tables.StudyRow.name).where(tables.StudyRow.id == task.study_id)
            ).scalar_one()
            ledger.append(connection, "study_answer", name, facts=facts, now=now, made={"study_answer": [number]})
        return True

    def rows(self, study_id: int) -> list[StudyRating]:
        """Return the study as rows for its analysis, the model's last; what is not rated yet is empty."""
        with self._database.read() as connection:
            tasks = connection.execute(_told().where(StudyTask.study_id == study_id)).all()
            ids = dict.fromkeys(row.inspection_id for row in tasks)
            query = queries.summaries().where(tables.InspectionRow.id.in_(ids))
            parts = {each.inspection_id: each for each in map(queries.summary, connection.execute(query))}
        names = _names(parts)
        reference = {row.inspection_id: row.said for row in tasks if (row.appraiser, row.trial) == _REFERENCE}
        asked = [(row.inspection_id, row.appraiser, row.trial, row.said) for row in tasks if row.trial]
        asked += [(number, MODEL, 1, parts[number].verdict) for number in sorted(parts)]
        return [
            StudyRating(names[number], parts[number].archived_to, reference[number], who, str(trial), said)
            for number, who, trial, said in asked
        ]


def studied(connection: Connection, inspection_ids: Collection[int]) -> tuple[list[int], list[int]]:
    """Return the ids of the studies with these inspections, and of the ratings they got there."""
    answers: list[int] = []
    studies: set[int] = set()
    for chunk in chunks(inspection_ids):
        parts = select(StudyPart.study_id).where(StudyPart.inspection_id.in_(chunk))
        studies |= set(connection.execute(parts).scalars())
        is_part = (StudyPart.study_id == StudyTask.study_id) & (StudyPart.position == StudyTask.part_position)
        said = select(tables.StudyRatingRow.id).join(StudyTask, StudyTask.id == tables.StudyRatingRow.task_id)
        answers += connection.execute(said.join(StudyPart, is_part).where(StudyPart.inspection_id.in_(chunk))).scalars()
    return sorted(studies), sorted(answers)


def _names(parts: dict[int, InspectionSummary]) -> dict[int, str]:
    """Return each part's name in the study: its serial, with the inspection's id where two share one."""
    counts = Counter(each.serial for each in parts.values())
    return {n: each.serial if counts[each.serial] == 1 else f"{each.serial} #{n}" for n, each in parts.items()}


def _check_inspections(connection: Connection, ids: Sequence[int]) -> None:
    found = set(connection.execute(select(tables.InspectionRow.id).where(tables.InspectionRow.id.in_(ids))).scalars())
    missing = [str(number) for number in ids if number not in found]
    if missing:
        raise NotFoundError(f"no inspection {', '.join(missing)}", remedy="list inspections with: inspect-xai find")


def _study(connection: Connection, condition: Any) -> Study:
    row = connection.execute(select(tables.StudyRow.__table__).where(condition)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such study", remedy="list studies with: inspect-xai msa list")
    first = select(StudyTask.appraiser, func.min(StudyTask.id)).where(
        StudyTask.study_id == row.id, StudyTask.appraiser != ""
    )
    people = connection.execute(first.group_by(StudyTask.appraiser).order_by(func.min(StudyTask.id))).all()
    parts = connection.execute(select(func.count()).where(StudyPart.study_id == row.id)).scalar_one()
    names = tuple(name for name, _ in people)
    return Study(row.id, row.name, row.trials, row.seed, row.created_at, row.created_by, names, parts)


def _answered(task_id: Any) -> Any:
    """Return whether a task has an answer."""
    said = select(tables.StudyRatingRow.id).where(tables.StudyRatingRow.task_id == task_id)
    return said.correlate(StudyTask).exists()


def _tasks(*conditions: Any) -> Select[Any]:
    parts = select(func.count()).where(StudyPart.study_id == StudyTask.study_id).correlate(StudyTask).scalar_subquery()
    return (
        select(
            StudyTask.id,
            StudyTask.study_id,
            StudyTask.appraiser,
            StudyTask.trial,
            StudyTask.run_order,
            parts,
            StudyPart.inspection_id,
        )
        .join(StudyPart, (StudyPart.study_id == StudyTask.study_id) & (StudyPart.position == StudyTask.part_position))
        .where(*conditions)
    )


def _told() -> Select[Any]:
    """Each task with its newest answer; of a trial there is only one."""
    said = (
        select(tables.StudyRatingRow.verdict)
        .where(tables.StudyRatingRow.task_id == StudyTask.id)
        .order_by(tables.StudyRatingRow.id.desc())
        .limit(1)
        .correlate(StudyTask)
        .scalar_subquery()
    )
    return (
        select(StudyTask.appraiser, StudyTask.trial, StudyPart.inspection_id, func.coalesce(said, "").label("said"))
        .join(StudyPart, (StudyPart.study_id == StudyTask.study_id) & (StudyPart.position == StudyTask.part_position))
        .order_by(StudyTask.id)
    )
