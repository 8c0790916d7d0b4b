"""The desk in the store, on SQLite and PostgreSQL: what waits, who holds it, what was answered."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.support import desk_inspections as making
from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage.review_queue import Answer, AnswerAccepted, Conflict, Desk
from inspect_xai.storage.review_queue_sql import BLIND, QueueFilter
from inspect_xai.storage.review_reasons import NEAR_THRESHOLD, ReviewReason, State, share_of, why_on_desk
from inspect_xai.storage.store import Store, open_store

ALL = QueueFilter()


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    """Three NG, two UNSURE and one good part."""
    making.filled(database_url, tmp_path / "archive", flagged=5, good=1)
    with open_store(database_url) as opened:
        opened.set_reason("DUST", "dust")
        yield opened


def said(inspection_id: int, person: str, decision: Decision, *, newest: int | None = None, key: str = "") -> Answer:
    verdict = {Decision.CONFIRM: VerdictCode.NG, Decision.OVERTURN: VerdictCode.OK}.get(decision, VerdictCode.UNSURE)
    reason = "DUST" if decision is Decision.OVERTURN else ""
    review = Review(person, decision, verdict, reason_code=reason)
    return Answer(inspection_id, review, key or f"{person}-{inspection_id}-{newest}", newest)


def beside(desk: Desk, inspection_id: int, wanted: QueueFilter) -> tuple[int | None, int | None]:
    seen = desk.seen(inspection_id, "Ada", wanted)
    return seen.previous_id, seen.next_id


def test_the_queue_is_walked_claimed_and_answered(store: Store) -> None:
    desk = Desk(store.database)
    assert (desk.enqueue_new(), desk.enqueue_new()) == (5, 0)
    waiting = desk.queue(ALL)
    assert [(e.reason, e.summary.inspection_id) for e in waiting] == [
        ("unsure", 1),
        ("unsure", 3),
        ("unsure", 5),
        ("ng", 2),
        ("ng", 4),
    ]
    assert [e.summary.inspection_id for e in desk.queue(ALL, after=(waiting[1].priority, 3), limit=2)] == [5, 2]
    assert beside(desk, 3, ALL) == (1, 5)
    assert beside(desk, 3, QueueFilter(verdict="NG")) == (None, 2)
    before = QueueFilter(inspected_before=waiting[0].summary.inspected_at)
    assert 1 not in [e.summary.inspection_id for e in desk.queue(before)]

    assert desk.claim_next("Ada", ALL) == 1
    assert desk.claim_next("Bert", ALL) == 3
    assert desk.claim_next("Bert", ALL, skipped=[3]) == 5  # who goes on lets go of the one before
    assert desk.claim_next("Cleo", ALL) == 3
    held = desk.claim(1, "Bert")
    assert held is not None
    assert (held.kind, held.person) == ("claimed", "Ada")
    assert desk.release(1, "Bert") is False
    assert desk.release(1, "Bert", whoever_holds_it=True) is True
    assert desk.claim(1, "Bert") is None

    taken = desk.answer(said(1, "Bert", Decision.OVERTURN))
    assert isinstance(taken, AnswerAccepted)
    assert (taken.is_new, taken.state) == (True, State.DONE)
    assert desk.answer(said(1, "Bert", Decision.OVERTURN)) == dataclasses.replace(taken, is_new=False)
    assert desk.overview().total == 4
    (event,) = store.ledger.events(kind="review")
    assert event.facts["reviewer"] == "Bert"
    assert store.ledger.verify().holds


def test_answers_that_cross_are_refused_and_nothing_of_them_is_kept(store: Store) -> None:
    desk = Desk(store.database)
    desk.enqueue_new()
    first = desk.answer(said(2, "Ada", Decision.CONFIRM))
    assert isinstance(first, AnswerAccepted)
    late = desk.answer(said(2, "Bert", Decision.CONFIRM))
    stranger = desk.answer(said(2, "Bert", Decision.CONFIRM, newest=first.review_id))
    borrowed = desk.answer(said(2, "Bert", Decision.CONFIRM, key="Ada-2-None"))
    assert [(c.kind, c.person) for c in (late, stranger, borrowed) if isinstance(c, Conflict)] == [
        ("judged", "Ada"),
        ("judged", "Ada"),
        ("key", "Ada"),
    ]
    corrected = desk.answer(said(2, "Quinn", Decision.OVERTURN, newest=first.review_id), may_correct_others=True)
    assert isinstance(corrected, AnswerAccepted)
    assert [review.superseded for review in store.get(2).reviews] == [True, False]


def test_a_claim_runs_out(store: Store) -> None:
    now = making.NOW
    desk = Desk(dataclasses.replace(store.database, clock=lambda: now), claim_s=60)
    desk.enqueue_new()
    assert desk.claim_next("Ada", ALL) == 1
    now += timedelta(seconds=59)
    assert desk.claim_next("Bert", ALL) == 3
    now += timedelta(seconds=2)
    entry = desk.seen(1, "Bert", ALL).standing
    assert entry is not None
    assert entry.claimed_by == ""
    assert desk.claim_next("Bert", ALL) == 1


@pytest.mark.parametrize(
    ("second_share", "decision", "state"),
    [(0.0, Decision.CONFIRM, State.DONE), (0.0, Decision.UNDECIDED, State.OPEN), (1.0, Decision.CONFIRM, State.OPEN)],
)
def test_when_a_second_person_is_wanted(store: Store, second_share: float, decision: Decision, state: State) -> None:
    desk = Desk(store.database, second_share=second_share)
    desk.enqueue_new()
    taken = desk.answer(said(2, "Ada", decision))
    assert isinstance(taken, AnswerAccepted)
    assert taken.state is state
    if state is State.OPEN:
        assert desk.claim_next("Ada", QueueFilter(reason=ReviewReason.SECOND_LOOK)) is None
        assert desk.claim_next("Bert", QueueFilter(reason=ReviewReason.SECOND_LOOK)) == 2
        own = desk.answer(said(2, "Ada", Decision.CONFIRM, newest=taken.review_id))
        assert isinstance(own, Conflict)
        agreed = Decision.CONFIRM  # the first agreed too, or could not say
        second = desk.answer(said(2, "Bert", agreed, newest=taken.review_id))
        assert isinstance(second, AnswerAccepted)
        assert second.state is State.DONE
        assert [review.superseded for review in store.get(2).reviews] == [False, False]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Decision.CONFIRM, Decision.OVERTURN),
        (Decision.CONFIRM, Decision.UNDECIDED),
        (Decision.UNDECIDED, Decision.UNDECIDED),
    ],
)
def test_where_two_disagree_a_third_decides(store: Store, first: Decision, second: Decision) -> None:
    desk = Desk(store.database, second_share=1.0)
    desk.enqueue_new()
    one = desk.answer(said(2, "Ada", first))
    assert isinstance(one, AnswerAccepted)
    two = desk.answer(said(2, "Bert", second, newest=one.review_id))
    assert isinstance(two, AnswerAccepted)
    (entry,) = desk.queue(QueueFilter(reason=ReviewReason.DISPUTED))
    assert (two.state, entry.first_reviewer, entry.second_reviewer) == (State.OPEN, "Ada", "Bert")
    for person in ("Ada", "Bert"):
        assert desk.claim_next(person, QueueFilter(reason=ReviewReason.DISPUTED)) is None
        own = desk.answer(said(2, person, Decision.CONFIRM, newest=two.review_id, key=f"once more {person}"))
        assert isinstance(own, Conflict)
        assert own.kind == "own"
    third = desk.answer(said(2, "Cleo", Decision.OVERTURN, newest=two.review_id))
    assert isinstance(third, AnswerAccepted)
    assert third.state is State.DONE
    assert [review.superseded for review in store.get(2).reviews] == [False] * 3


def test_blind_parts_stand_together_and_are_answered_blind_once(store: Store) -> None:
    desk = Desk(store.database, blind_share=1.0)
    desk.enqueue_new()
    assert [(e.is_blind, e.summary.inspection_id) for e in desk.queue(ALL)] == [(True, n) for n in range(1, 6)]
    for telling in ({"verdict": "NG"}, {"label": "crack"}, {"reason": ReviewReason.UNSURE}):
        assert desk.queue(QueueFilter(**telling)) == []  # type: ignore[arg-type]
    assert len(desk.queue(QueueFilter(reason=BLIND, line="L2"))) == 3
    counts = desk.overview().counts
    assert (counts["reason"], counts["verdict"], counts["line"]) == ({"blind": 5}, {}, {"L1": 2, "L2": 3})
    assert desk.covered([1, 2, 6], "Ada") == {1, 2}

    early = desk.answer(said(1, "Ada", Decision.CONFIRM))
    assert isinstance(early, Conflict)
    assert early.kind == "blind"
    unseen = Answer(1, Review("Ada", Decision.OVERTURN, VerdictCode.OK, blind=True), "blind answer", None)
    taken = desk.answer(unseen)
    assert isinstance(taken, AnswerAccepted)
    assert (desk.covered([1], "Ada"), desk.covered([1], "Bert")) == (frozenset(), {1})
    again = desk.answer(dataclasses.replace(unseen, key="after seeing it", newest_seen=taken.review_id))
    assert isinstance(again, Conflict)
    final = desk.answer(said(1, "Ada", Decision.CONFIRM, newest=taken.review_id))
    assert isinstance(final, AnswerAccepted)
    assert final.state is State.DONE
    assert desk.covered([1], "Bert") == frozenset()
    plain = Answer(6, Review("Ada", Decision.CONFIRM, VerdictCode.OK, blind=True), "not on the desk", None)
    assert isinstance(desk.answer(plain), Conflict)


def test_similar_parts_a_good_part_and_what_was_recorded_since(store: Store, tmp_path: Path) -> None:
    desk = Desk(store.database)
    again = making.inspection(tmp_path / "archive", 2)
    same_place = dataclasses.replace(
        again, capture=dataclasses.replace(again.capture, sha256="e" * 64, part=making.Part("SN9", "magnetic tile"))
    )
    elsewhere = dataclasses.replace(again, capture=dataclasses.replace(again.capture, sha256="f" * 64, station="S9"))
    store.record([same_place, elsewhere])
    assert [each.serial for each in desk.similar_to(store.get(2))] == ["SN9"]
    assert desk.similar_to(store.get(6)) == []
    assert [each.inspection_id for each in desk.history_of(2)] == [8]  # the same part at another station
    assert desk.history_of(1) == []
    assert desk.good_part_like(6) is None
    good = making.inspection(tmp_path / "archive", 12, VerdictCode.OK)  # L1/S1, where part 6 was
    store.record([good])
    assert desk.good_part_like(6) == 9
    assert [each.inspection_id for each in desk.recorded_after(5, limit=2)] == [6, 7]


def test_another_answer_under_the_same_key_is_a_conflict(store: Store) -> None:
    desk = Desk(store.database)
    desk.enqueue_new()
    first = said(2, "Ada", Decision.CONFIRM, key="one key for all")
    assert isinstance(desk.answer(first), AnswerAccepted)
    assert isinstance(desk.answer(first), AnswerAccepted)
    for changes in ({"note": "changed"}, {"box": (1, 2, 3, 4)}, {"map_rating": "no"}, {"true_label": "crack"}):
        again = desk.answer(dataclasses.replace(first, review=dataclasses.replace(first.review, **changes)))
        assert isinstance(again, Conflict)
        assert (again.kind, again.review) == ("changed", store.get(2).reviews[0])
    assert len(store.get(2).reviews) == 1


def test_a_good_part_is_good_in_every_eye(store: Store, tmp_path: Path) -> None:
    """Part 6 stands at L1/S1; beside it belongs a part that model and people call OK, seen by the same camera."""
    desk = Desk(store.database)
    archive = tmp_path / "archive"

    def good(number: int, **changes: object) -> int:
        given = making.inspection(archive, number, VerdictCode.OK)
        capture = dataclasses.replace(given.capture, line="L1", station="S1", **changes)  # type: ignore[arg-type]
        return store.record([dataclasses.replace(given, capture=capture)])[0].inspection_id

    oldest = good(72)
    good(66, camera="CAM2")
    good(60, view="SIDE")
    overturned, doubted, half_bad = good(54), good(48), good(42)
    assert desk.good_part_like(6) == half_bad
    store.review(overturned, Review("Ada", Decision.OVERTURN, VerdictCode.NG, reason_code="DUST"))
    store.review(doubted, Review("Ada", Decision.UNDECIDED, VerdictCode.UNSURE))
    bad_side = making.inspection(archive, 43)
    part = store.get(half_bad).capture.part
    store.record([dataclasses.replace(bad_side, capture=dataclasses.replace(bad_side.capture, part=part, view="SIDE"))])
    assert desk.good_part_like(6) == oldest
    newest = store.get(overturned).reviews[-1]
    store.review(overturned, Review("Quinn", Decision.CONFIRM, VerdictCode.OK), supersedes=newest.review_id)
    assert desk.good_part_like(6) == overturned


def facts(**changes: object) -> dict[str, object]:
    return {
        "verdict": "NG",
        "score": 0.9,
        "threshold": 0.5,
        "has_failed": False,
        "is_sample": False,
        "explanation_status": "explained",
        "notes": [],
        "energy_in_roi": None,
    } | changes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ReviewReason.NG),
        ({"has_failed": True, "verdict": "UNSURE"}, ReviewReason.FAILED),
        ({"verdict": "UNSURE"}, ReviewReason.UNSURE),
        ({"score": 0.5 + NEAR_THRESHOLD / 2}, ReviewReason.NEAR_THRESHOLD),
        ({"score": 0.51 + NEAR_THRESHOLD}, ReviewReason.NG),
        ({"explanation_status": "no_evidence"}, ReviewReason.WEAK_EXPLANATION),
        ({"notes": ["low_score_spread"]}, ReviewReason.WEAK_EXPLANATION),
        ({"energy_in_roi": 0.49}, ReviewReason.OUTSIDE_ROI),
        ({"energy_in_roi": 0.5}, ReviewReason.NG),
        ({"verdict": "OK", "is_sample": True}, ReviewReason.SAMPLE),
        ({"verdict": "OK"}, None),
    ],
)
def test_what_puts_an_inspection_on_the_desk(changes: dict[str, object], why: ReviewReason | None) -> None:
    assert why_on_desk(**facts(**changes)) is why  # type: ignore[arg-type]


def test_shares_are_even_and_independent_of_each_other() -> None:
    drawn = [share_of(f"{n:064x}", "second") for n in range(2000)]
    assert 0.46 < sum(share < 0.5 for share in drawn) / 2000 < 0.54
    both = sum(share < 0.5 and share_of(f"{n:064x}", "blind") < 0.5 for n, share in enumerate(drawn)) / 2000
    assert 0.21 < both < 0.29
