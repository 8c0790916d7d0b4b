"""The stages of a line, each by itself: what is read ahead, judged, explained together and given up when asked."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inspect_xai.errors import DatabaseAwayError, DeviceError, ExplanationError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.request import ExplainRequest
from inspect_xai.explain.window_scores import PreparedPicture, prepare_picture, score_windows
from inspect_xai.intake.decode import decode_picture
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.sources import Claim
from inspect_xai.line import stages
from inspect_xai.line.stages import (
    Examiner,
    IntakeSpec,
    PictureState,
    Schedule,
    StopRequested,
    decode_and_cut,
    explain,
    judge,
    read_ahead,
    read_several,
    stopped_between_runs,
    until_stopped,
)
from inspect_xai.model.engine import Engine
from inspect_xai.policy import DefaultPolicy, ExplainRule, Policy, policy_from
from inspect_xai.records import Explanation, PictureLimits, VerdictCode
from tests.support import hostile, spots

LIMITS = PictureLimits()
EVERY_PICTURE = DefaultPolicy("1", ExplainRule(ok_share=1.0))
NO_PICTURE = policy_from({"version": "1", "explain": {"verdicts": [], "ok_share": 0.0}})


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explainer]:
    with Explainer(spots.spot_bundle(tmp_path_factory.mktemp("bundle")), device="cpu", bucket=8) as opened:
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FolderSource]:
    """Four pictures: OK, OK, UNSURE, NG."""
    (tmp_path / "in").mkdir()
    for number, spot_px in enumerate([0, 0, 5, 10]):
        (tmp_path / f"in/{number}.png").write_bytes(hostile.encoded(spots.part(number, spot_px=spot_px)))
    with FolderSource(tmp_path / "in", settle_s=0) as opened:
        yield opened


def in_order(claims: list[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: claim.file_name)


def nothing_known(_: Sequence[str]) -> Mapping[str, int]:
    return {}


def not_asked(_: int) -> frozenset[str]:
    pytest.fail("no rule looks at overturned labels")


def read_all(
    source: FolderSource, known: Callable[[Sequence[str]], Mapping[str, int]] = nothing_known
) -> list[PictureState]:
    claims = iter(in_order(source.claim(10)))
    return read_several(source, claims, pattern=IntakeSpec().pattern(), limits=LIMITS, known=known, schedule=Schedule())


def test_a_sidecar_with_a_bad_time_keeps_its_other_fields(source: FolderSource) -> None:
    content = '{"serial": "SN7", "lot": "LOT7", "camera": null, "captured_at": "22.11.2026 06:15"}'
    (source.folder / "0.json").write_text(content)
    refused, *others = read_all(source)
    assert (refused.identity.part.serial, refused.identity.part.lot, refused.identity.known_from) == (
        "SN7",
        "LOT7",
        "sidecar",
    )
    assert "captured_at is '22.11.2026 06:15'" in str(refused.error)
    assert [picture.error for picture in others] == [None] * 3


def decode_all(pictures: Sequence[PictureState], explainer: Explainer) -> None:
    with ThreadPoolExecutor(2) as decoders:
        decode_and_cut(pictures, limits=LIMITS, cut=partial(prepare_picture, explainer.engine), decoders=decoders)


def judged(source: FolderSource, examiner: Examiner, explainer: Explainer) -> list[PictureState]:
    pictures = read_all(source)
    decode_all(pictures, explainer)
    return list(judge([pictures], examiner, overturned=not_asked))


def examiner_for(explainer: Explainer, policy: Policy = EVERY_PICTURE, *, waiting_bytes: int = 1 << 26) -> Examiner:
    return Examiner(explainer.engine, policy, waiting_bytes=waiting_bytes)


@pytest.mark.parametrize(("read_bytes", "at_once"), [(0, 1), (1 << 25, 2)], ids=["large", "small"])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_next_pictures_are_read_while_some_are_with_the_network(
    source: FolderSource,
    explainer: Explainer,
    monkeypatch: pytest.MonkeyPatch,
    read_bytes: int,
    at_once: int,
    overlap: bool,
) -> None:
    """The files in any case, with overlap the pixels, too; and of no others, so that no more are held."""
    files = [threading.Event() for _ in range(5)]
    pixels = [threading.Event() for _ in range(5)]
    read, calls = source.read, iter(range(4))

    def noting_files(claim: Claim, *, limits: PictureLimits) -> bytes:
        next(event for event in files if not event.is_set()).set()
        return read(claim, limits=limits)

    def noting_pixels(data: bytes, *, limits: PictureLimits) -> NDArray[np.uint8]:
        next(event for event in pixels if not event.is_set()).set()
        return decode_picture(data, limits=limits)

    def waiting(engine: Engine, prepared: PreparedPicture) -> NDArray[np.float32]:
        at_work = (next(calls) // at_once + 1) * at_once
        for events, ahead in ((files, at_work + at_once), (pixels, at_work + at_once * overlap)):
            assert ahead > 4 or events[ahead - 1].wait(30)
            assert not events[min(4, ahead)].is_set()
        return score_windows(engine, prepared)

    monkeypatch.setattr(source, "read", noting_files)
    monkeypatch.setattr(stages, "decode_picture", noting_pixels)
    monkeypatch.setattr(stages, "score_windows", waiting)
    schedule = Schedule(read_at_once=2, read_bytes=read_bytes)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as decoders:
        groups = read_ahead(
            partial(
                read_several,
                source,
                iter(in_order(source.claim(4))),
                pattern=IntakeSpec().pattern(),
                limits=LIMITS,
                known=nothing_known,
                schedule=schedule,
            ),
            partial(decode_and_cut, limits=LIMITS, cut=partial(prepare_picture, explainer.engine), decoders=decoders),
            reader=reader,
            overlap=overlap,
        )
        pictures = list(judge(groups, examiner_for(explainer, NO_PICTURE), overturned=not_asked))
    assert [picture.claim.file_name for picture in pictures] == ["0.png", "1.png", "2.png", "3.png"]
    sizes = [picture.judgment.picture.size for picture in pictures if picture.judgment]
    assert sizes == [0, 0, 0, 0]  # a chunk does not hold its pictures


def test_what_is_recorded_is_neither_decoded_nor_judged(source: FolderSource, explainer: Explainer) -> None:
    pictures = read_all(source, known=lambda sha256s: {sha256s[1]: 7})
    decode_all(pictures, explainer)
    assert [picture.known_id for picture in pictures] == [None, 7, None, None]
    assert [picture.size_px for picture in pictures] == [(32, 32), (0, 0), (32, 32), (32, 32)]
    done = list(judge([pictures], examiner_for(explainer), overturned=not_asked))
    codes = [picture.judgment and picture.judgment.verdict.code for picture in done]
    assert codes == [VerdictCode.OK, None, VerdictCode.UNSURE, VerdictCode.NG]


def test_a_file_without_a_picture_keeps_its_error_and_a_hash_of_its_own(
    source: FolderSource, explainer: Explainer, tmp_path: Path
) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / "in" / name).write_bytes(b"rubbish")
    pictures = read_all(source)
    decode_all(pictures, explainer)
    errors = [type(picture.error).__name__ for picture in pictures]
    assert errors == ["PictureError", "PictureError", "NoneType", "NoneType"]
    assert len({picture.sha256 for picture in pictures}) == 4
    assert [picture.prepared is None for picture in pictures] == [True, True, False, False]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        (DefaultPolicy("1", ExplainRule(ok_share=0.0)), ["", "", "unsure", "ng"]),
        (EVERY_PICTURE, ["sample", "sample", "unsure", "ng"]),
        (NO_PICTURE, ["", "", "", ""]),
    ],
    ids=["flagged", "all", "none"],
)
def test_the_policy_says_what_is_explained(
    source: FolderSource, explainer: Explainer, policy: Policy, reasons: list[str]
) -> None:
    pictures = judged(source, examiner_for(explainer, policy), explainer)
    assert [picture.explain_reason for picture in pictures] == reasons
    assert [picture.request is not None for picture in pictures] == [bool(reason) for reason in reasons]


def test_labels_are_asked_for_only_where_a_rule_looks_at_them(source: FolderSource, explainer: Explainer) -> None:
    policy = policy_from({"version": "1", "explain": {"verdicts": [], "ok_share": 0.0, "overturned_days": 7}})
    pictures = read_all(source)
    decode_all(pictures, explainer)
    days: list[int] = []

    def overturned(number: int) -> frozenset[str]:
        days.append(number)
        return frozenset({"spot"})

    done = list(judge([pictures], examiner_for(explainer, policy), overturned=overturned))
    assert [picture.explain_reason for picture in done] == ["overturned"] * 4
    assert days == [7] * 4


def test_pictures_wait_for_each_other_until_a_run_is_full(source: FolderSource, explainer: Explainer) -> None:
    """A bucket of 8 masks takes two windows at once."""
    examiner = examiner_for(explainer)
    ok, _, unsure, ng = judged(source, examiner, explainer)
    assert explainer.engine.windows_at_once == 2
    assert not examiner.should_batch_more([])
    assert examiner.should_batch_more([ng])
    assert not examiner.should_batch_more([unsure, ng])
    assert not examiner_for(explainer, waiting_bytes=0).should_batch_more([ok])


def test_a_picture_with_a_bound_in_seconds_waits_for_no_other(source: FolderSource, explainer: Explainer) -> None:
    examiner = examiner_for(explainer, policy_from({"version": "1", "explain": {"max_seconds": 5.0}}))
    *_, ng = judged(source, examiner, explainer)
    assert not examiner.should_batch_more([ng])


def test_explained_pictures_come_in_order_and_hold_no_pixels(source: FolderSource, explainer: Explainer) -> None:
    examiner = examiner_for(explainer)
    pictures = list(explain(judged(source, examiner, explainer), examiner))
    assert [picture.claim.file_name for picture in pictures] == ["0.png", "1.png", "2.png", "3.png"]
    assert [picture.explanation is not None for picture in pictures] == [True] * 4
    assert [picture.request for picture in pictures] == [None] * 4
    assert all(picture.duration_ms > 0 for picture in pictures)


def test_a_picture_that_fails_among_others_fails_alone(
    source: FolderSource, explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, calls = stages.explain_together, []

    def failing(requests: Sequence[ExplainRequest]) -> list[Explanation]:
        calls.append(len(requests))
        if any(request.look.verdict.code is VerdictCode.UNSURE for request in requests):
            raise ExplanationError("not finite", expected="finite numbers", remedy="none")
        return together(requests)

    examiner = examiner_for(explainer)
    pictures = judged(source, examiner, explainer)
    monkeypatch.setattr(stages, "explain_together", failing)
    done = list(explain(pictures, examiner))
    assert calls == [2, 2, 1, 1]  # the second pair again, one by one
    assert [type(picture.error).__name__ for picture in done] == [
        "NoneType",
        "NoneType",
        "ExplanationError",
        "NoneType",
    ]
    assert [picture.explanation is not None for picture in done] == [True, True, False, True]


@pytest.mark.parametrize("error", [DeviceError("gone"), DatabaseAwayError("away"), StopRequested()])
def test_what_another_picture_would_meet_as_well_ends_the_stage(
    source: FolderSource, explainer: Explainer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(_engine: Engine, _prepared: PreparedPicture) -> NDArray[np.float32]:
        raise error

    monkeypatch.setattr(stages, "score_windows", failing)
    with pytest.raises(type(error)):
        judged(source, examiner_for(explainer), explainer)


def test_the_network_is_stopped_between_its_runs_two_seconds_after_the_request(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, stop = [100.0], [False]
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    before = explainer.engine.before_run
    with stopped_between_runs(explainer.engine, lambda: stop[0]):
        explainer.engine.before_run()
        stop[0] = True
        explainer.engine.before_run()  # notices it
        clock[0] += 2.0
        explainer.engine.before_run()
        clock[0] += 0.01
        with pytest.raises(StopRequested):
            explainer.engine.before_run()
    assert explainer.engine.before_run is before


def test_pictures_that_are_not_done_when_the_line_is_stopped_are_left_out(source: FolderSource) -> None:
    first, *_ = read_all(source)

    def stages_of_two() -> Iterator[PictureState]:
        yield first
        raise StopRequested

    assert list(until_stopped(stages_of_two())) == [first]
