"""The review desk as a browser without JavaScript meets it: over a socket, reading pages and then the rows."""

import dataclasses
import html
import io
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import cv2
import fsspec
import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.support import desk_inspections as making
from inspect_xai.cli import app as cli
from inspect_xai.maths import sise
from inspect_xai.records import Failure, Status, VerdictCode
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.review_queue_sql import QueueFilter
from inspect_xai.storage.store import open_store
from inspect_xai.web import forms, rendering
from tests.support.desk import Desk, Visitor, opening, serving

Open = Callable[..., Desk]


@pytest.fixture
def opened(sqlite_template: Path, tmp_path: Path) -> Iterator[Open]:
    with opening(sqlite_template, tmp_path, flagged=4, good=1) as open_desk:
        yield open_desk


def picture_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return np.asarray(cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED))


def text_of(page: str) -> str:
    """What a reader sees of a page, roughly."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_an_operator_judges_the_whole_queue_without_javascript(opened: Open) -> None:
    desk = opened(flagged=4)
    ada = desk.client("Ada")

    queue = text_of(ada.get("/queue").text)
    assert "4 waiting" in queue
    assert queue.index("SN00001") < queue.index("SN00003") < queue.index("SN00002")  # unsure ones before rejected ones

    page = ada.follow(ada.post("/queue/next"))
    assert page.url.path == "/inspections/1"
    seen = text_of(page.text)
    assert "UNSURE" in seen
    assert "“crack” scores 44 %, below its limit of 50 %" in seen
    assert "It shows no cause." in seen
    assert "This model was not approved" in seen

    page = ada.follow(ada.answer(1, decision="confirm", on_defect="yes", label="crack"))
    assert page.url.path == "/inspections/3"
    assert "Saved: part SN00001 NG, agrees with the model." in text_of(page.text)
    page = ada.follow(
        ada.answer(3, decision="overturn", reason="DUST", box_top="10", box_left="20", box_height="5", box_width="6")
    )
    page = ada.follow(ada.answer(2, decision="undecided", note="too dark\r\nto say"))
    page = ada.follow(ada.answer(4, decision="confirm"))
    assert page.url.path == "/queue"
    assert "1 waiting" in text_of(page.text)  # what she could not say waits for somebody else

    said = {number: desk.store.get(number).reviews for number in (1, 2, 3, 4)}
    assert all(len(reviews) == 1 and reviews[0].reviewer == "Ada" for reviews in said.values())
    assert (said[1][0].decision, said[1][0].verdict, said[1][0].true_label) == ("confirm", "NG", "crack")
    assert said[1][0].map_rating == "yes"
    assert (said[3][0].decision, said[3][0].verdict, said[3][0].reason_code) == ("overturn", "OK", "DUST")
    assert said[3][0].box == (10, 20, 5, 6)
    assert (said[2][0].verdict, said[2][0].note) == ("UNSURE", "too dark\nto say")
    events = desk.store.ledger.events(kind="review")
    assert [event.facts["reviewer"] for event in events] == ["Ada"] * 4
    assert desk.store.ledger.verify().holds


def test_an_answer_against_the_model_needs_a_reason_and_loses_nothing_that_was_typed(opened: Open) -> None:
    desk = opened(flagged=1)
    ada = desk.client("Ada")

    refused = ada.judge(1, decision="overturn", note="glare <b>", box_top="1", label="free")
    assert refused.status_code == 422
    assert "Please choose a reason" in text_of(refused.text)
    assert "glare &lt;b&gt;</textarea>" in refused.text
    assert 'name="box_top" inputmode="numeric" pattern="[0-9]*" maxlength="7" value="1"' in refused.text
    assert "<option selected>free</option>" in refused.text
    assert desk.store.get(1).reviews == ()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"decision": "approve"}, "defect, good part or cannot say"),
        ({"decision": "overturn", "reason": "NOPE"}, "choose a reason"),
        ({"decision": "confirm", "label": "dent"}, "not one of the model"),
        ({"decision": "confirm", "note": "x" * 2001}, "note is too long"),
        ({"decision": "confirm", "box_top": "1"}, "four whole numbers"),
        ({"decision": "confirm", "box_top": "0", "box_left": "0", "box_height": "97", "box_width": "1"}, "inside"),
        ({"decision": "confirm", "box_top": "-1", "box_left": "0", "box_height": "1", "box_width": "1"}, "inside"),
        ({"decision": "confirm", "box_top": "٣", "box_left": "0", "box_height": "1", "box_width": "1"}, "inside"),
    ],
)
def test_an_answer_that_cannot_be_meant_is_refused_in_words(fields: dict[str, str], told: str, tmp_path: Path) -> None:
    from inspect_xai.web.i18n import catalog

    url = f"sqlite:///{tmp_path}/desk.db"
    making.filled(url, tmp_path / "archive", flagged=1, good=0)
    with open_store(url) as store:
        given = store.get(1)
    with pytest.raises(forms.FormError) as caught:
        forms.answer_in(fields, given, person="Ada", blind=False, reasons={"DUST": "dust"})
    assert told in catalog("en")[caught.value.key]


def test_two_operators_never_judge_the_same_part(opened: Open) -> None:
    desk = opened(flagged=2)
    ada, bert = desk.client("Ada"), desk.client("Bert")

    assert ada.follow(ada.post("/queue/next")).url.path == "/inspections/1"
    assert bert.follow(bert.post("/queue/next")).url.path == "/inspections/2"
    page = text_of(bert.get("/inspections/1").text)
    assert "Ada is judging this part until" in page
    assert "Good part" not in page

    refused = bert.post("/inspections/1/review", {"decision": "confirm", "newest": "", "key": "a-key"})
    assert refused.status_code == 409
    assert "Ada is judging part SN00001" in text_of(refused.text)
    assert desk.store.get(1).reviews == ()
    assert bert.post("/inspections/1/claim").status_code == 409


def test_a_claim_runs_out_and_whoever_comes_late_sees_who_said_what(opened: Open) -> None:
    desk = opened(flagged=1, claim_s=0.05)
    ada, bert = desk.client("Ada"), desk.client("Bert")
    ada.follow(ada.post("/queue/next"))
    time.sleep(0.1)
    bert.follow(bert.post("/queue/next"))
    bert.follow(bert.answer(1, decision="overturn", reason="DUST", note="wiped off"))

    late = ada.answer(1, decision="confirm", note="deep")
    assert late.status_code == 409
    page = text_of(late.text)
    assert "Bert has answered part SN00001 meanwhile. Your answer was not saved." in page
    assert "wiped off" in page
    assert "deep" in page
    assert [review.reviewer for review in desk.store.get(1).reviews] == ["Bert"]


def test_a_form_sent_twice_is_one_answer_and_a_correction_supersedes(opened: Open) -> None:
    desk = opened(flagged=1, open_role="operator")
    ada = desk.client("Ada")
    ada.get("/inspections/1")
    fields = {"decision": "confirm", "key": ada.hidden("key"), "newest": ""}
    for _ in range(2):
        assert ada.post("/inspections/1/review", fields).status_code == 303
    assert len(desk.store.get(1).reviews) == 1

    page = ada.get("/inspections/1?correct=1")
    assert "You correct an answer" in text_of(page.text)
    assert ada.answer(1, decision="overturn", reason="DUST").status_code == 303
    first, second = desk.store.get(1).reviews
    assert (first.superseded, second.supersedes_id, second.decision) == (True, first.review_id, "overturn")

    bert = desk.client("Bert")
    assert "Correct this answer" not in text_of(bert.get("/inspections/1").text)
    assert (
        bert.post(
            "/inspections/1/review", {"decision": "confirm", "newest": str(second.review_id), "key": "other"}
        ).status_code
        == 409
    )


def test_blind_parts_are_judged_before_verdict_and_map_are_shown(opened: Open) -> None:
    desk = opened(flagged=1, blind_share=1.0)
    ada = desk.client("Ada")

    queue = text_of(ada.get("/queue").text)
    assert "44 %" not in queue
    assert "Model unsure" not in queue.partition("Filters")[0]
    page = ada.follow(ada.post("/queue/next"))
    for hidden in ("UNSURE", "44\u00a0%", "map.png", "Scores of all labels", "outlines.svg"):
        assert hidden not in page.text.replace('value="UNSURE"', "").replace("answer UNSURE", "")

    page = ada.follow(ada.answer(1, verdict="OK"))
    assert page.url.path == "/inspections/1"
    assert "Now you see verdict and map" in text_of(page.text)
    assert "map.png" in page.text
    ada.follow(ada.answer(1, decision="confirm", on_defect="yes"))

    blind, final = desk.store.get(1).reviews
    assert (blind.blind, blind.verdict, blind.decision) == (True, "OK", "overturn")
    assert (final.blind, final.verdict, final.supersedes_id) == (False, "NG", None)
    assert desk.app.state.site.desk.queue(QueueFilter()) == []


def test_a_second_person_looks_where_the_rule_says_so_and_never_the_first_one(opened: Open) -> None:
    desk = opened(flagged=1, second_share=1.0)
    ada, bert = desk.client("Ada"), desk.client("Bert")
    ada.follow(ada.post("/queue/next"))
    assert ada.follow(ada.answer(1, decision="confirm")).url.path == "/queue"  # nothing left for her
    assert "Second look" in text_of(bert.get("/queue").text)
    own = ada.post("/inspections/1/review", {"decision": "confirm", "newest": "1", "key": "again"})
    assert own.status_code == 409
    bert.follow(bert.post("/queue/next"))
    bert.follow(bert.answer(1, decision="overturn", reason="DUST"))
    assert [(r.reviewer, r.superseded) for r in desk.store.get(1).reviews] == [("Ada", False), ("Bert", False)]
    assert "Two people disagree" in text_of(bert.page)
    cleo = desk.client("Cleo")
    page = cleo.follow(cleo.post("/queue/next"))
    assert "your judgment decides" in text_of(page.text)
    cleo.follow(cleo.answer(1, decision="confirm"))
    assert "Nothing waits" in text_of(cleo.page)


def test_no_other_way_leads_around_a_blind_judgement(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=4, good=1, blind_share=1.0)
    ada = desk.client("Ada")
    api = "/api/v1/inspections/1"
    ada.get("/queue")
    for path in ("map.png", "overlay.png", "outlines.svg", "block-1.png"):
        assert ada.get(f"/inspections/1/{path}").status_code == 403
        assert ada.http.get(f"/inspections/1/{path}?v=x").status_code == 403
    for path in (api, f"{api}/map", f"{api}/reviews"):
        for visitor in (ada.http, desk.client().http):  # signed in, or whoever sits at this machine
            assert visitor.get(path).json()["error"] == "error.covered"
    for path in ("/api/v1/inspections", "/api/v1/queue", "/api/v1/parts/SN00001"):
        told = ada.http.get(path).json()
        rows = told if isinstance(told, list) else told.get("inspections") or [e["inspection"] for e in told["items"]]
        row = next(row for row in rows if row["inspection_id"] == 1)
        assert {row[name] for name in ("verdict", "label", "reason", "explained_because", "explanation_status")} == {""}
        assert (row["score"], row["passes"], row["support_share"]) == (0, 0, 0)
    assert {item["why"] for item in ada.http.get("/api/v1/queue").json()["items"]} == {"blind"}
    assert ada.http.get("/api/v1/queue?verdict=UNSURE").json()["items"] == []
    part = text_of(ada.get("/parts?serial=SN00001").text)
    assert "judged blind" in part
    assert "UNSURE" not in part
    assert "No part" in text_of(ada.get("/queue?label=crack").text) or "Nothing fits" in text_of(ada.page)
    # Somebody else holds it, answers blind, or sends a form without having looked: still nothing is told.
    bert = desk.client("Bert")
    bert.get("/queue")
    bert.post("/inspections/1/claim")
    held = ada.get("/inspections/1").text
    assert "map.png" not in held
    assert "UNSURE" not in text_of(held).replace("UNSURE part", "")
    late = ada.post("/inspections/1/review", {"decision": "confirm", "key": "no look at it", "newest": ""})
    assert late.status_code == 409
    assert "NG" not in text_of(late.text).split()
    bert.judge(1, verdict="NG")
    assert "blind" not in text_of(bert.get("/inspections/1").text).partition("Answers so far")[0]
    assert "Saved" not in text_of(ada.get("/queue?done=1").text)
    assert ada.http.get(f"{api}/reviews").status_code == 403
    forged = ada.post(
        "/inspections/2/review", {"decision": "overturn", "reason": "DUST", "key": "never looked", "newest": ""}
    )
    assert forged.status_code == 409
    assert "judged blind first" in text_of(forged.text)
    assert desk.store.get(2).reviews == ()
    # What is judged blind is nobody's similar part or good part either.
    bert.answer(1, decision="confirm")
    page = text_of(bert.get("/inspections/1?compare=1").text)
    assert "SN00003" not in page
    assert bert.get("/inspections/1/map.png").status_code == 200


def test_the_queue_is_filtered_by_its_address_and_paged_by_key(opened: Open) -> None:
    desk = opened(flagged=30, good=0)
    ada = desk.client("Ada")
    seen: list[str] = []
    path = "/queue"
    while path:
        page = ada.get(path).text
        rows = [part.partition("<")[0] for part in page.split("data-row>")[1:]]
        seen += rows
        path = page.partition('<a href="/queue?after=')[2].partition('"')[0]
        path = f"/queue?after={path}" if path else ""
    assert len(seen) == len(set(seen)) == 30

    some = text_of(ada.get("/queue?line=L1&station=S1&verdict=NG").text)
    numbers = [n for n in range(1, 31) if n % 2 + 1 == 1 and n % 3 + 1 == 1 and n % 2 == 0]
    assert [f"SN{n:05d}" in some for n in range(1, 31)] == [n in numbers for n in range(1, 31)]
    assert "Nothing fits" in text_of(ada.get("/queue?line=elsewhere").text)
    older = text_of(ada.get("/queue?older=h1").text)
    assert "SN00001" not in older
    assert "SN00029" in older
    # An answer leads on to the next part of the same filter.
    page = ada.follow(ada.post("/queue/next", {"back": "line=L2&evil=1"}))
    assert page.url.params.get("line") == "L2"
    assert "evil" not in str(page.url)
    page = ada.follow(ada.answer(int(page.url.path.rpartition("/")[2]), decision="confirm"))
    assert desk.store.get(int(page.url.path.rpartition("/")[2])).capture.line == "L2"


def test_what_was_skipped_comes_again_when_nothing_else_is_left(opened: Open) -> None:
    ada = opened(flagged=3, good=0).client("Ada")
    ada.follow(ada.post("/queue/next"))
    order = [ada.follow(ada.post("/queue/next", {"skip": number})).url.path for number in ("1", "3", "2")]
    assert order == ["/inspections/3", "/inspections/2", "/inspections/1"]


def test_pictures_and_maps_are_what_was_recorded(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=2)
    ada = desk.client("Ada")
    photograph = making.surface(2, with_defect=True)
    assert np.array_equal(picture_of(ada.get("/inspections/2/picture.png")), photograph)
    assert picture_of(ada.get("/inspections/2/thumbnail.png")).shape == (making.SIZE, making.SIZE)

    stored = desk.store.get(2, maps=True)
    assert stored.explanation is not None
    assert stored.explanation.fused is not None
    share = stored.explanation.fused / stored.explanation.fused.max()
    layer = picture_of(ada.get("/inspections/2/map.png"))
    assert layer.shape == (making.SIZE, making.SIZE, 4)
    assert np.array_equal(layer[..., 3], np.rint(share * 255).astype(np.uint8))

    for number, block in enumerate(stored.explanation.tiles[0].blocks, 1):
        assert block.sums is not None
        expected = sise.normalized(block.sums, (making.SIZE, making.SIZE))
        assert expected is not None
        layer = picture_of(ada.get(f"/inspections/2/block-{number}.png"))
        assert np.abs(layer[..., 3] - expected * 255).max() <= 0.51
    assert ada.get("/inspections/2/block-3.png").status_code == 404

    outlines = ada.get("/inspections/2/outlines.svg")
    assert outlines.headers["content-type"].startswith("image/svg+xml")
    assert outlines.text.count("M") == 2 * len(stored.explanation.regions)
    overlay = picture_of(ada.get("/inspections/2/overlay.png"))
    free = share == 0
    assert np.array_equal(overlay[free][:, 0], photograph[free]) or overlay.shape == (*photograph.shape, 3)


def test_pictures_of_an_archive_elsewhere_are_shown_too(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    elsewhere = fsspec.filesystem("memory")
    given = [making.inspection(tmp_path / "camera", number) for number in (1, 2)]
    elsewhere.pipe("/plant/archive/SN00001.png", (tmp_path / "camera" / "SN00001.png").read_bytes())
    with open_store(url) as store:
        making.prepared(store).record(
            [
                dataclasses.replace(
                    each, capture=dataclasses.replace(each.capture, archived_to=f"memory://plant/archive/SN0000{n}.png")
                )
                for n, each in enumerate(given, 1)
            ]
        )
    with serving(url, ServeSettings(archive=("memory://plant/archive",))) as desk:
        ada = desk.client("Ada")
        picture = ada.get("/inspections/1/picture.png")
        assert picture.headers["content-type"] == "image/png"
        shown = cv2.imdecode(np.frombuffer(picture.content, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(shown, making.surface(1, with_defect=True))
        assert ada.get("/inspections/2/picture.png").status_code == 404  # gone meanwhile
        assert ada.get("/inspections/2").status_code == 200


def test_browsers_ask_each_time_whether_they_may_still_show_a_picture(opened: Open) -> None:
    ada = opened(flagged=1).client("Ada")
    name = ada.get("/inspections/1").text.partition("picture.png?v=")[2].partition('"')[0]
    for kind in ("picture.png", "thumbnail.png", "map.png", "overlay.png", "block-1.png", "outlines.svg"):
        kept = ada.get(f"/inspections/1/{kind}?v={name}")
        assert (kept.status_code, kept.headers["cache-control"]) == (200, "private, no-cache")
        again = ada.get(f"/inspections/1/{kind}", headers={"If-None-Match": kept.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert ada.get("/inspections/1").headers["cache-control"] == "no-store"


def test_a_picture_that_is_gone_is_not_shown_from_memory(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=2, good=1)
    ada = desk.client("Ada")
    tags = {}
    for number in (1, 2):
        for kind in ("picture", "thumbnail", "overlay"):
            shown = ada.get(f"/inspections/{number}/{kind}.png")
            assert shown.status_code == 200
            tags[number, kind] = shown.headers["etag"]
    (tmp_path / "archive" / "SN00001.png").unlink()
    with sqlite3.connect(tmp_path / "desk.db") as connection:  # a mark of retention, as by another process
        connection.execute("UPDATE capture SET picture_deleted_at = '2026-01-01 00:00:00.000000' WHERE id = 2")
    for (number, kind), tag in tags.items():
        assert ada.get(f"/inspections/{number}/{kind}.png").status_code == 404, (number, kind)
        path = f"/inspections/{number}/{kind}.png"
        assert ada.get(path, headers={"If-None-Match": tag}).status_code == 404
    assert ada.get("/inspections/1/map.png").status_code == 200  # maps are kept on
    assert "retention deleted it" in text_of(ada.get("/inspections/2").text)


def test_a_map_that_retention_took_is_not_shown_from_memory(opened: Open, tmp_path: Path) -> None:
    ada = opened(flagged=1).client("Ada")
    kept = ada.get("/inspections/1/map.png")
    assert kept.status_code == 200
    with sqlite3.connect(tmp_path / "desk.db") as connection:
        connection.execute("UPDATE map_blob SET deleted_at = '2026-01-01 00:00:00.000000', data = NULL")
    for kind in ("map.png", "overlay.png", "block-1.png", "outlines.svg"):
        assert ada.get(f"/inspections/1/{kind}", headers={"If-None-Match": kept.headers["etag"]}).status_code == 404


@pytest.mark.parametrize(("decision", "shown"), [("confirm", "NG"), ("overturn", "OK"), ("undecided", "UNSURE")])
def test_the_conflict_page_shows_what_was_said(opened: Open, decision: str, shown: str) -> None:
    """Part 2 is NG: who agrees says NG, in the words and the color."""
    desk = opened(flagged=2, claim_s=0.05)
    ada, bert = desk.client("Ada"), desk.client("Bert")
    ada.get("/inspections/2")
    bert.follow(bert.judge(2, decision="confirm"))
    page = ada.answer(2, decision=decision, reason="DUST" if decision == "overturn" else "", note="mine").text
    yours = page.partition('id="yours"')[2].partition("</section>")[0]
    assert f'class="verdict {shown} "' in yours
    assert "Somebody was faster" in text_of(page)


def test_nobody_is_faster_than_oneself(opened: Open) -> None:
    desk = opened(flagged=2)
    ada = desk.client("Ada")
    ada.get("/inspections/2")
    other_tab = {name: ada.hidden(name) for name in ("key", "newest", "back")}
    ada.follow(ada.judge(2, decision="confirm"))
    for language, told in (("en", "You have answered part SN00002 already"), ("de", "Sie haben Teil SN00002 schon")):
        ada.get("/queue")
        ada.post("/preferences", {"language": language})
        page = ada.post("/inspections/2/review", {**other_tab, "decision": "overturn", "reason": "DUST"})
        assert page.status_code == 409
        assert told in text_of(page.text)
        assert "faster" not in page.text
        assert "schneller" not in page.text


def test_another_answer_under_the_same_key_is_told_and_both_are_shown(opened: Open) -> None:
    desk = opened(flagged=2)
    ada = desk.client("Ada")
    ada.get("/inspections/2")
    sent = {name: ada.hidden(name) for name in ("key", "newest", "back")}
    assert ada.post("/inspections/2/review", {**sent, "decision": "confirm", "note": "deep"}).status_code == 303
    assert ada.post("/inspections/2/review", {**sent, "decision": "confirm", "note": "deep"}).status_code == 303
    page = ada.post("/inspections/2/review", {**sent, "decision": "overturn", "reason": "DUST", "note": "wiped off"})
    assert page.status_code == 409
    assert "You sent this form before with another answer" in text_of(page.text)
    theirs, yours = (page.text.partition(f'id="{who}"')[2].partition("</section>")[0] for who in ("theirs", "yours"))
    assert ('class="verdict NG "' in theirs, "deep" in theirs) == (True, True)
    assert ('class="verdict OK "' in yours, "wiped off" in yours) == (True, True)
    assert [review.note for review in desk.store.get(2).reviews] == ["deep"]


def test_a_part_whose_page_fails_blocks_nobody(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=3, good=0)
    with sqlite3.connect(tmp_path / "desk.db") as connection:  # a record that no page can be made of
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE inspection SET reason = 'NOT_A_REASON' WHERE id = 1")
    ada, bert = desk.client("Ada"), desk.client("Bert")
    assert ada.post("/queue/next").headers["location"] == "/inspections/1"
    assert ada.get("/inspections/1").status_code == 500
    assert ada.follow(ada.post("/queue/next")).url.path == "/inspections/3"
    assert bert.follow(bert.post("/queue/next")).url.path == "/inspections/2"
    assert "1 (ValueError)" in text_of(ada.get("/queue").text)
    assert "inspect_xai_queue_broken 1.0" in desk.client().get("/metrics").text


def test_years_at_the_ends_of_the_calendar_break_no_page(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=2, good=0, time_zone="Europe/Berlin")
    with sqlite3.connect(tmp_path / "desk.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE capture SET captured_at = '9999-12-31 23:59:59.000000' WHERE id = 1")
    page = desk.client("Ada").get("/inspections/1")
    assert page.status_code == 200
    assert "9999-12-31 23:59:59" in page.text


def test_why_there_is_no_picture_or_map_is_said_in_words(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=0, good=0)
    archive = tmp_path / "archive"
    given = [making.inspection(archive, number) for number in range(1, 7)]
    assert all(each.explanation for each in given)

    def with_status(status: Status, number: int) -> object:
        zeros = np.zeros((making.SIZE, making.SIZE), np.float32)
        explanation = dataclasses.replace(given[number].explanation, status=status, fused=zeros, regions=())  # type: ignore[type-var]
        return dataclasses.replace(given[number], explanation=explanation)

    def lying_at(place: str, number: int) -> object:
        return dataclasses.replace(given[number], capture=dataclasses.replace(given[number].capture, archived_to=place))

    noted = dataclasses.replace(given[5].explanation, notes=("low_score_spread", "brand_new"))  # type: ignore[type-var]
    desk.store.record(
        [
            with_status(Status.NO_EVIDENCE, 0),
            with_status(Status.NOT_EXPLAINED, 1),
            lying_at("/etc/passwd", 2),
            lying_at(str(archive / "gone.png"), 3),
            dataclasses.replace(given[4], explanation=None, failure=Failure("ExplanationError", "NaN in <block 3>")),
            dataclasses.replace(given[5], explanation=noted),
            making.failed(archive, 7),
        ]  # type: ignore[list-item]
    )
    (archive / "SN00006.png").write_bytes((archive / "SN00001.png").read_bytes())
    ada = desk.client("Ada")
    seen = {number: text_of(ada.get(f"/inspections/{number}").text) for number in range(1, 8)}
    assert "no part of the network argues for “crack”" in seen[1]
    assert "no place of the picture keeps a score" in seen[2]
    assert "outside the archive folders" in seen[3]
    assert "no longer where it was archived" in seen[4]
    assert "NaN in <block 3>" in seen[5]
    assert "the score hardly differs" in seen[6]
    assert "brand_new" in seen[6]
    assert "The picture could not be read." in seen[7]
    assert "the file is cut short" in seen[7]
    codes = {n: ada.get(f"/inspections/{n}/picture.png").status_code for n in (3, 4, 6, 7)}
    assert codes == {3: 404, 4: 404, 6: 404, 7: 404}  # 6: its bytes are no longer those that were judged
    assert "map.png" not in ada.get("/inspections/1").text


def test_parts_models_help_and_a_good_part_beside(opened: Open) -> None:
    desk = opened(flagged=6, good=6)
    ada = desk.client("Ada")
    assert "SN00002" in text_of(ada.get("/parts?serial=SN00002").text)
    assert ada.get("/parts?serial=SN1").status_code == 404
    models = text_of(ada.get("/models").text)
    assert "tile-net" in models
    assert "not approved" in models
    assert "Where hiding changes the score most" in text_of(ada.get("/help").text)
    beside = ada.get("/inspections/2?compare=1").text
    good = desk.app.state.site.desk.good_part_like(2)
    assert f'src="/inspections/{good}/picture.png"' in beside
    capture = desk.store.get(good).capture
    assert (capture.line, capture.station) == (desk.store.get(2).capture.line, desk.store.get(2).capture.station)


def test_the_reader_chooses_language_and_colors(opened: Open) -> None:
    desk = opened(flagged=1)
    german = desk.client(headers={"Accept-Language": "de-DE,de;q=0.9"})
    page = german.get("/signin")
    assert page.headers["content-language"] == "de"
    german.sign_in(name="Grete")
    assert "Teile, die auf Sie warten" in german.page
    assert german.post("/preferences", {"language": "en", "theme": "dark", "back": "/queue"}).status_code == 303
    page = german.get("/queue")
    assert 'lang="en" data-theme="dark"' in page.text
    assert german.post("/preferences", {"back": "https://evil.example/"}).headers["location"] == "/queue"


def test_the_json_interface_tells_the_same_and_takes_an_answer_once(opened: Open, tmp_path: Path) -> None:
    from inspect_xai.web.auth import digest_of

    people = tmp_path / "people.toml"
    people.write_text(f'[[person]]\nname = "MES"\nrole = "operator"\ntoken_sha256 = "{digest_of("badge")}"\n')
    desk = opened(flagged=3, people=people)
    mes = desk.client(headers={"Authorization": "Bearer badge"}).http
    first = mes.get("/api/v1/inspections?limit=3").json()
    assert [each["serial"] for each in first["inspections"]] == ["SN00001", "SN00002", "SN00003"]
    rest = mes.get(f"/api/v1/inspections?after={first['after']}").json()
    assert ([each["serial"] for each in rest["inspections"]], rest["after"]) == (["SN00004"], None)

    one = mes.get("/api/v1/inspections/2").json()
    assert one["scores"]["crack"] == pytest.approx(0.93)
    assert one["verdict"]["code"] == "NG"
    assert one["model_fingerprint"] == making.FINGERPRINT
    fused = np.load(io.BytesIO(mes.get("/api/v1/inspections/2/map").content), allow_pickle=False)
    stored = desk.store.get(2, maps=True).explanation
    assert stored is not None
    assert np.array_equal(fused, stored.fused)
    assert mes.get("/api/v1/inspections/4/map").status_code == 404

    queue = mes.get("/api/v1/queue?limit=2").json()
    assert [each["why"] for each in queue["items"]] == ["unsure", "unsure"]
    assert queue["waiting"] == 3

    said = {"decision": "overturn", "reason_code": "DUST", "box": [1, 2, 3, 4]}
    key = {"Idempotency-Key": "order-4711"}
    answers = [mes.post("/api/v1/inspections/2/reviews", json=said, headers=key) for _ in range(2)]
    assert [(a.status_code, a.json()["is_new"]) for a in answers] == [(201, True), (200, False)]
    (review,) = mes.get("/api/v1/inspections/2/reviews").json()
    assert (review["reviewer"], review["verdict"], review["box"]) == ("MES", "OK", [1, 2, 3, 4])
    other = mes.post("/api/v1/inspections/2/reviews", json=said, headers={"Idempotency-Key": "order-4712"})
    assert (other.status_code, other.json()["error"]) == (409, "conflict.judged")
    assert mes.post("/api/v1/inspections/2/reviews", json=said).status_code == 422
    wrong = mes.post(
        "/api/v1/inspections/3/reviews", json={"decision": "overturn"}, headers={"Idempotency-Key": "k" * 9}
    )
    assert (wrong.status_code, wrong.json()["error"]) == (422, "form.reason")

    assert [each["serial"] for each in mes.get("/api/v1/parts/SN00003").json()] == ["SN00003"]
    assert mes.get("/api/v1/models").json()[0]["status"] == "candidate"
    assert "DUST" in mes.get("/api/v1/reasons").json()
    assert mes.get("/api/v1/inspections/99").json()["error"] == "error.404"
    assert mes.get("/health/live").json() == mes.get("/health/ready").json() == {"status": "ok"}
    metrics = mes.get("/metrics").text
    assert 'inspect_xai_queue_waiting{why="unsure"} 2' in metrics


def test_a_monitor_reads_what_was_inspected_and_only_new_rows_are_added(opened: Open) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    from inspect_xai.storage.metrics_totals import TotalsReader

    desk = opened(flagged=3)
    totals = TotalsReader(desk.store.database)
    first = totals.now()
    assert totals.now() == first
    text = desk.client().get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = {tuple(sample.labels.values()): sample.value for sample in families["inspect_xai_inspections"].samples}
    rows = desk.store.find(limit=1000)
    assert counted == {
        place: sum((row.line, row.station, row.verdict) == place for row in rows)
        for place in {(row.line, row.station, row.verdict) for row in rows}
    }
    spent = sum(sample.value for sample in families["inspect_xai_passes"].samples)
    assert spent == sum(row.passes for row in rows) > 0
    assert families["inspect_xai_newest_inspection_timestamp_seconds"].samples[0].value == pytest.approx(
        max(row.inspected_at for row in rows).timestamp()
    )
    assert families["inspect_xai_explanations"].samples[0].labels["explained"] == "explained"


def test_the_command_line_writes_the_very_documents_of_the_interface(opened: Open) -> None:
    desk = opened(flagged=2, good=1)
    url = desk.store.database.engine.url.render_as_string()
    told = [desk.client().get(f"/api/v1/inspections/{number}").json() for number in (1, 2, 3)]
    shown = CliRunner().invoke(cli, ["show", "2", "--db", url, "--json"])
    assert json.loads(shown.stdout) == told[1]
    found = CliRunner().invoke(cli, ["find", "--whole", "--db", url])
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert sorted(lines, key=lambda line: line["inspection_id"]) == told


def test_the_description_of_the_interface_names_every_route(opened: Open) -> None:
    desk = opened(flagged=1)
    document = desk.client().get("/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    assert {"/api/v1/inspections", "/api/v1/inspections/{inspection_id}/reviews", "/api/v1/queue"} <= set(paths)
    assert all(
        operation.get("summary") and "401" in operation["responses"]
        for path in paths.values()
        for operation in path.values()
    )


def test_two_models_that_disagree_put_a_part_on_the_desk(opened: Open, tmp_path: Path) -> None:
    desk = opened(flagged=0, good=1)
    site = desk.app.state.site
    site.desk.enqueue_new()
    assert site.desk.queue(QueueFilter()) == []
    other = dataclasses.replace(making.CARD, version="4")
    desk.store.registry.register_model("beef" * 16, other)
    good = making.inspection(tmp_path / "archive", 1, VerdictCode.OK)
    disagreeing = dataclasses.replace(
        making.inspection(tmp_path / "archive", 1), capture=good.capture, fingerprint="beef" * 16
    )
    desk.store.record([disagreeing])
    site.desk.enqueue_new()
    assert {(e.summary.model_version, e.reason) for e in site.desk.queue(QueueFilter())} == {
        ("3", "disagreement"),
        ("4", "disagreement"),
    }


def test_blobs_drawn_are_kept_up_to_a_size() -> None:
    kept = rendering.Kept(most_bytes=10)
    made: list[str] = []

    def make(name: str) -> bytes:
        made.append(name)
        return b"12345"

    for name in ("a", "b", "a", "c", "b"):
        kept.get(name, lambda name=name: make(name))  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]  # "a" was used again, so "b" went first


def test_old_answers_are_not_asked_for_again(sqlite_template: Path, tmp_path: Path) -> None:
    """Inspections judged before the desk first looked are done."""
    from inspect_xai.records import Decision, Review
    from inspect_xai.storage.review_queue import Desk as StoreDesk

    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    making.filled(url, tmp_path / "archive", flagged=2, good=0)
    with open_store(url) as store:
        store.review(1, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
        desk = StoreDesk(store.database)
        assert desk.enqueue_new() == 2
        assert [entry.summary.inspection_id for entry in desk.queue(QueueFilter())] == [2]
        assert desk.overview().total == 1
        assert desk.overview().oldest_at == making.NOW - timedelta(minutes=14) + timedelta(seconds=1)


def addresses_in(page: str) -> set[str]:
    """Whatever a page leads to, loads or sends to, without the places within a page."""
    found = re.findall(r'\b(?:href|src|action|data-map)="([^"#]+)', page)
    return {html.unescape(each) for each in found}


@pytest.mark.parametrize("passed_on", [True, False])
def test_below_a_path_no_page_leads_out_of_it(opened: Open, tmp_path: Path, passed_on: bool) -> None:
    """The proxy serves the desk at /inspect/, and passes that on or leaves it out."""
    from inspect_xai.storage.studies import Studies

    desk = opened(flagged=3, good=2, path="/inspect", reports=tmp_path / "reports")
    Studies(desk.store.database).create("tiles", appraisers=["Ada"], parts=2, trials=1, seed=1, by="Ada")

    def asked_for(address: str) -> str:
        assert address.startswith("/inspect/"), address
        return address if passed_on else address.removeprefix("/inspect")

    ada = desk.client()
    first = ada.get(asked_for("/inspect/"))
    assert first.headers["location"] == "/inspect/queue"
    refused = ada.get(asked_for("/inspect/queue"))
    assert refused.headers["location"] == "/inspect/signin?next=/queue"
    visited = ada.get(asked_for(refused.headers["location"]))
    ada.http.headers["Cookie"] = visited.headers["set-cookie"].partition(";")[0]  # as a browser sends it to the proxy
    entered = ada.post(asked_for("/inspect/signin"), {"name": "Ada", "next": "/queue"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/inspect/queue")
    cookie = entered.headers["set-cookie"]
    assert "Path=/inspect;" in f"{cookie};"
    ada.http.headers["Cookie"] = cookie.partition(";")[0]

    waiting = {"/inspect/queue", "/inspect/inspections/1?correct=1&compare=1", "/inspect/parts?serial=SN00001"}
    seen: set[str] = set()
    while waiting:
        address = waiting.pop()
        asked_for(address)
        if address.partition("?")[0] in seen:  # with other filters, or another map
            continue
        seen.add(address.partition("?")[0])
        page = ada.get(asked_for(address))
        if page.status_code == 405 or address.partition("?")[0] in ("/inspect/signin", "/inspect/signout"):
            continue  # where forms are sent to
        assert page.status_code in (200, 303), (address, page.status_code)
        if page.status_code == 303:
            waiting.add(page.headers["location"])
        elif page.headers["content-type"].startswith("text/html"):
            waiting |= addresses_in(page.text)
    assert {"/inspect/static/desk.css", "/inspect/static/desk.js", "/inspect/models", "/inspect/studies/1"} <= seen
    assert "/inspect/inspections/1/map.png" in seen

    ada.get(asked_for("/inspect/queue"))
    assert ada.post(asked_for("/inspect/queue/next")).headers["location"].startswith("/inspect/inspections/")
    ada.get(asked_for("/inspect/inspections/1"))
    chosen = ada.post(asked_for("/inspect/preferences"), {"theme": "dark", "back": ada.hidden("back")})
    assert chosen.headers["location"].startswith("/inspect/")
    assert ada.get(asked_for("/inspect/queue/")).headers["location"] == "/inspect/queue"
    told = ada.get(asked_for("/inspect/api/v1/openapi.json")).json()
    assert told["servers"] == [{"url": "/inspect"}]
    assert ada.get(asked_for("/inspect/api/v1/no/such/path")).json()["error"] == "error.404"
    assert addresses_in(ada.get(asked_for("/inspect/nowhere")).text) <= seen
    assert ada.post(asked_for("/inspect/signout")).headers["location"] == "/inspect/signin"


def test_visitors_keep_apart(opened: Open) -> None:
    """A session is a browser: what one chooses, another does not see."""
    desk = opened(flagged=1)
    ada, bert = desk.client("Ada"), desk.client("Bert")
    assert isinstance(ada, Visitor)
    ada.post("/preferences", {"theme": "dark"})
    assert 'data-theme="dark"' in ada.get("/queue").text
    assert 'data-theme="auto"' in bert.get("/queue").text
    ada.post("/signout")
    assert ada.get("/queue").headers["location"] == "/signin?next=/queue"
    assert bert.get("/queue").status_code == 200
