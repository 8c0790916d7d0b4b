"""Studies on the desk: who judges which part when, what counts, and what comes out of the analysis."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.support import stored
from inspect_xai.cli import app
from inspect_xai.errors import NotFoundError, StudyError
from inspect_xai.records import VerdictCode
from inspect_xai.statistics.agreement import analyze
from inspect_xai.storage.store import Store, open_store
from inspect_xai.storage.studies import Studies


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Eight parts judged OK (even numbers) and NG (odd ones), on both databases."""
    with open_store(database_url) as opened:
        stored.prepared(opened)
        codes = [VerdictCode.NG if n % 2 else VerdictCode.OK for n in range(8)]
        opened.record([stored.inspection(n, code=code) for n, code in enumerate(codes)])
        yield opened


def truth(store: Store, inspection_id: int) -> VerdictCode:
    """Odd serials are defective; the model knows all but number 2, which it passed."""
    number = int(store.get(inspection_id).capture.part.serial[2:])
    return VerdictCode.NG if number % 2 or number == 2 else VerdictCode.OK


def test_a_study_is_judged_in_its_stored_order_and_analysed_with_the_model(store: Store) -> None:
    studies = Studies(store.database)
    study = studies.create("autumn", appraisers=["Ada", "Bob"], trials=2, seed=5, by="Cleo", inspection_ids=range(1, 9))
    assert (study.parts, study.appraisers, study.trials) == (8, ("Ada", "Bob"), 2)
    assert [each.answered for each in studies.progress(study.study_id)] == [0] * 5
    with pytest.raises(StudyError, match="8 of 8 parts have no reference"):
        analyze(studies.rows(study.study_id))
    orders: dict[tuple[str, int], list[int]] = {}
    for who, by in (("", "Cleo"), ("Ada", "Ada"), ("Bob", "Bob")):
        while task := studies.next_task(study.study_id, who):
            said = truth(store, task.inspection_id)
            if who == "Bob" and task.trial == 2 and task.place == 1:
                said = VerdictCode.NG if said is VerdictCode.OK else VerdictCode.OK
            assert task.place == len(orders.setdefault((who, task.trial), [])) + 1
            orders[who, task.trial].append(task.inspection_id)
            assert studies.answer(task, said, by=by)
    assert orders["", 0] != list(range(1, 9))  # flagged parts first would tell what the model said
    assert all(sorted(order) == list(range(1, 9)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 5  # all of them drawn
    found = {each.appraiser: each for each in analyze(studies.rows(study.study_id)).appraisals}
    assert (found["Ada"].effectiveness.count, found["Ada"].within.count) == (8, 8)
    assert (found["Bob"].effectiveness.count, found["Bob"].within.count) == (7, 7)
    model = found["model"]
    assert (model.effectiveness.count, model.miss.count, model.miss.denominator, model.false_alarm.count) == (
        7,
        1,
        5,
        0,
    )
    told = [event for event in store.ledger.events() if event.kind == "study_answer"]
    assert [event.facts["by"] for event in told] == ["Cleo"] * 8 + ["Ada"] * 16 + ["Bob"] * 16
    assert store.ledger.verify().holds


def test_of_a_trial_the_first_answer_counts_and_of_the_reference_the_last(store: Store) -> None:
    studies = Studies(store.database)
    study = studies.create("s", appraisers=["Ada"], trials=1, by="Cleo", inspection_ids=[1, 2])
    task = studies.next_task(study.study_id, "Ada")
    reference = studies.next_task(study.study_id, "")
    assert task is not None
    assert reference is not None
    with pytest.raises(StudyError, match="Bob answers in the place of Ada"):
        studies.answer(task, VerdictCode.OK, by="Bob")
    assert studies.answer(task, VerdictCode.NG, by="Ada")
    assert not studies.answer(task, VerdictCode.OK, by="Ada")
    with pytest.raises(StudyError, match="a reference that says UNSURE"):
        studies.answer(reference, VerdictCode.UNSURE, by="Cleo")
    assert studies.answer(reference, VerdictCode.NG, by="Cleo")
    assert studies.answer(reference, VerdictCode.OK, by="Cleo")
    rows = studies.rows(study.study_id)
    assert {row.answer for row in rows if row.appraiser == "Ada"} == {"NG", ""}
    part = store.get(reference.inspection_id).capture.part.serial
    assert {row.reference for row in rows if row.part == part} == {"OK"}
    assert {row.reference for row in rows if row.part != part} == {""}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"appraisers": []}, "0 appraisers"),
        ({"appraisers": ["Ada", "Ada"]}, "appraisers with different names"),
        ({"appraisers": ["model"]}, "people's names"),
        ({"trials": 0}, "0 trials"),
        ({"parts": 40}, "4 parts judged NG or UNSURE"),
        ({"parts": 1}, "1 parts"),
        ({"name": " "}, "cannot be called ''"),
        ({"name": "old"}, "is called 'old' already"),
        ({"inspection_ids": [1]}, "1 parts"),
        ({"trials": 10**6}, "at most 20000 answers"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(store: Store, changes: dict[str, object], says: str) -> None:
    studies = Studies(store.database)
    given: dict[str, object] = {"name": "new", "appraisers": ["Ada"], "parts": 4, "trials": 2, "by": "Cleo"}
    studies.create("old", **{key: value for key, value in given.items() if key != "name"})  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=says):
        studies.create(**(given | changes))  # type: ignore[arg-type]
    assert [study.name for study in studies.all()] == ["old"]
    with pytest.raises(NotFoundError, match="no inspection 99"):
        studies.create("new", appraisers=["Ada"], by="Cleo", inspection_ids=[1, 99])


def test_the_command_line_sets_up_lists_exports_and_analyses(tmp_path: Path, sqlite_template: Path) -> None:
    file = tmp_path / "line.db"
    shutil.copy(sqlite_template, file)
    url = f"sqlite:///{file}"
    with open_store(url) as opened:
        stored.prepared(opened)
        opened.record([stored.inspection(n, code=VerdictCode.NG if n % 2 else VerdictCode.OK) for n in range(8)])
    run = CliRunner().invoke

    made = run(app, ["msa", "create", "autumn", "--appraisers", "Ada", "--parts", "4", "--trials", "1", "--db", url])
    assert made.stdout == "autumn: 4 parts, 1 appraisers, 1 trials; it waits on the desk\n"
    early = run(app, ["msa", "analyze", "autumn", "--db", url])
    assert isinstance(early.exception, StudyError)
    with open_store(url) as opened:
        studies = Studies(opened.database)
        for who, by in (("", "Cleo"), ("Ada", "Ada")):
            while task := studies.next_task(1, who):
                said = opened.get(task.inspection_id).verdict.code
                studies.answer(task, said, by=by)
    listed = run(app, ["msa", "list", "--db", url])
    assert "autumn: 4 parts, 1 trials" in listed.stdout
    assert "Ada, trial 1                 4 of 4" in listed.stdout
    told = run(app, ["msa", "analyze", "autumn", "--db", url, "--json"])
    assert [each["appraiser"] for each in json.loads(told.stdout)["appraisals"]] == ["Ada", "model"]
    out = tmp_path / "autumn.csv"
    assert run(app, ["msa", "export", "autumn", "--out", str(out), "--db", url]).exit_code == 0
    again = run(app, ["msa", "analyze", str(out), "--json"])
    assert json.loads(again.stdout) == json.loads(told.stdout)
