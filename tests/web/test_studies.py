"""Studies on the desk over a socket: who is asked what, what stays hidden, and what comes out."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.support import desk_inspections as making
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.studies import Studies
from tests.support.desk import Desk, Visitor, people_file, serving


@pytest.fixture
def desk(sqlite_template: Path, tmp_path: Path) -> Iterator[Desk]:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    making.filled(url, tmp_path / "archive", flagged=2, good=2)
    settings = ServeSettings(archive=(tmp_path / "archive",), people=people_file(tmp_path))
    with serving(url, settings) as served:
        yield served


NEW = {"name": "Herbst 26", "appraisers": "Otto, Olga", "parts": "4", "trials": "2", "seed": "7", "inspections": ""}


def truth(desk: Desk, page: str, study: int = 1) -> str:
    """What the part on a page is, by its task: parts 1 and 2 are defective."""
    task = int(re.search(r'name="task" value="(\d+)"', page)[1])  # type: ignore[index]
    return "NG" if Studies(desk.store.database).task(task).inspection_id <= 2 else "OK"


def judge_all(desk: Desk, visitor: Visitor, *, reference: str = "") -> int:
    path, count = "/studies/1/judge" + ("?reference=1" if reference else ""), 0
    response = visitor.get(path)
    while response.status_code == 200:
        fields = {"task": visitor.hidden("task"), "verdict": truth(desk, response.text), "reference": reference}
        answer = visitor.post("/studies/1/judge", fields)
        assert answer.headers["location"] == path
        response = visitor.get(path)
        count += 1
    assert response.headers["location"] == "/studies/1"
    return count


def test_a_study_from_its_form_to_its_numbers(desk: Desk) -> None:
    quinn, otto, olga = (desk.client(token=f"token of {name}") for name in ("Quinn", "Otto", "Olga"))
    assert quinn.follow(quinn.post("/studies", NEW)).status_code == 200
    assert "Herbst 26" in otto.get("/studies").text
    assert "Begin trial 1 of 2" in otto.get("/studies/1").text
    assert "What came out" not in quinn.page
    assert [judge_all(desk, otto), judge_all(desk, olga), judge_all(desk, quinn, reference="1")] == [8, 8, 4]
    assert "You have judged every part" in otto.get("/studies/1").text
    assert "What came out" not in otto.page  # the numbers about people are for the quality department
    page = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", quinn.get("/studies/1").text))
    for who in ("Otto", "Olga"):
        assert f"{who} 100 % 4 of 4 100 % 4 of 4 acceptable 0 % 0 of 4 acceptable 0 % 0 of 4 acceptable 1.00" in page
    # The model said UNSURE of part 1: no right answer, but no miss either.
    assert "The model – 75 % 3 of 4 not acceptable 0 % 0 of 2 acceptable 0 % 0 of 2 acceptable" in page
    assert 'inspect-xai msa analyze "Herbst 26"' in page.replace("&#34;", '"')


def test_nothing_tells_what_the_model_or_anybody_said(desk: Desk) -> None:
    quinn, otto = (desk.client(token=f"token of {name}") for name in ("Quinn", "Otto"))
    quinn.get("/studies")
    quinn.post("/studies", NEW)
    page = otto.get("/studies/1/judge").text
    given = desk.store.get(Studies(desk.store.database).task(int(otto.hidden("task"))).inspection_id)
    told = page.partition("<main")[2].partition("</main>")[0]
    for secret in (given.capture.part.serial, given.capture.sha256, given.verdict.label, "/inspections/", "UNSURE</"):
        assert secret not in told
    picture = otto.get(f"/studies/1/tasks/{otto.hidden('task')}/picture.png")
    assert (picture.status_code, picture.headers["cache-control"]) == (200, "no-store")
    assert "etag" not in picture.headers


def test_who_is_not_asked_neither_judges_nor_looks(desk: Desk) -> None:
    quinn, otto, olga, vera = (desk.client(token=f"token of {n}") for n in ("Quinn", "Otto", "Olga", "Vera"))
    otto.get("/studies")
    assert otto.post("/studies", NEW).status_code == 403  # an operator sets up none
    quinn.get("/studies")
    quinn.post("/studies", NEW | {"appraisers": "Otto, Quinn"})
    assert olga.get("/studies/1/judge").status_code == 403
    assert vera.get("/studies/1/judge").status_code == 403
    assert quinn.get("/studies/1/judge?reference=1").status_code == 403  # who is measured gives no reference
    assert otto.get("/studies/1/judge?reference=1").status_code == 403
    otto.get("/studies/1/judge")
    mine = int(otto.hidden("task"))
    later = next(task for task in range(1, 30) if task != mine)
    assert olga.get(f"/studies/1/tasks/{mine}/picture.png").status_code == 403
    assert otto.get(f"/studies/1/tasks/{later}/picture.png").status_code == 403  # nor another than the next
    assert otto.get(f"/studies/2/tasks/{mine}/picture.png").status_code == 403
    assert otto.get("/studies/1/tasks/999/picture.png").status_code == 404
    olga.get("/studies")
    assert olga.post("/studies/1/judge", {"task": str(mine), "verdict": "OK"}).status_code == 403
    answers = [
        otto.post("/studies/1/judge", {"task": str(task), "verdict": "OK"}).status_code for task in (later, mine, mine)
    ]
    assert answers == [303, 303, 303]  # the first out of turn, the last sent twice: one answer stands
    assert otto.post("/studies/1/judge", {"task": "x", "verdict": "MAYBE"}).status_code == 422
    assert [each.answered for each in Studies(desk.store.database).progress(1)] == [0, 1, 0, 0, 0]
    assert otto.post("/studies/1/judge", {"csrf": "", "task": str(mine), "verdict": "OK"}).status_code == 403


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"parts": "x"}, "are whole numbers"),
        ({"parts": "100000"}, "are whole numbers"),
        ({"inspections": "1 two"}, "are whole numbers"),
        ({"appraisers": ""}, "0 appraisers"),
        ({"parts": "40"}, "2 parts judged NG or UNSURE"),
        ({"inspections": "1, 2, 77"}, "no inspection 77"),
        ({"name": "<b>x</b>\x07"}, "cannot be called"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused_in_words(desk: Desk, fields: dict[str, str], told: str) -> None:
    quinn = desk.client(token="token of Quinn")
    quinn.get("/studies")
    refused = quinn.post("/studies", NEW | fields)
    assert refused.status_code == 422
    assert told in refused.text
    assert "<b>x" not in refused.text
    assert Studies(desk.store.database).all() == []


def test_parts_that_were_chosen_are_the_studys(desk: Desk, tmp_path: Path) -> None:
    quinn = desk.client(token="token of Quinn")
    quinn.get("/studies")
    quinn.post("/studies", NEW | {"inspections": "4 1,3"})
    rows = sqlite3.connect(tmp_path / "desk.db").execute("SELECT inspection_id FROM study_part ORDER BY position")
    assert [row[0] for row in rows] == [4, 1, 3]
