"""Verdicts by hand: every branch of the rule, at and beside its threshold."""

import numpy as np
import pytest

from inspect_xai.explain.verdict import judge, predict, worst_window
from inspect_xai.records import InputSpec, ModelCard, Reason, VerdictCode, VerdictSpec


def card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "name": "toy",
        "version": "1",
        "labels": ("pit", "crack", "free"),
        "ok_labels": ("free",),
        "input": InputSpec(8, 8),
        "verdict": VerdictSpec(ng_threshold=0.5, unsure_margin=0.15, thresholds={"crack": 0.25}),
    }
    return ModelCard(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "code", "reason", "label"),
    [
        ((0.50, 0.10, 0.40), VerdictCode.NG, Reason.DEFECT_OVER_THRESHOLD, "pit"),
        ((0.36, 0.05, 0.59), VerdictCode.UNSURE, Reason.DEFECT_NEAR_THRESHOLD, "pit"),
        ((0.30, 0.05, 0.65), VerdictCode.OK, Reason.CLEAR, "pit"),
        ((0.10, 0.25, 0.65), VerdictCode.NG, Reason.DEFECT_OVER_THRESHOLD, "crack"),
        ((0.45, 0.30, 0.25), VerdictCode.NG, Reason.DEFECT_OVER_THRESHOLD, "crack"),
    ],
)
def test_the_label_furthest_over_its_own_threshold_decides(
    scores: tuple[float, ...], code: VerdictCode, reason: Reason, label: str
) -> None:
    verdict = judge(np.array(scores, np.float32), card(), card().verdict)

    assert (verdict.code, verdict.reason, verdict.label) == (code, reason, label)
    assert verdict.threshold == {"pit": 0.5, "crack": 0.25}[label]
    assert verdict.score == pytest.approx(scores[("pit", "crack", "free").index(label)])


def test_a_leading_defect_below_its_threshold_is_not_ok() -> None:
    strict = card(verdict=VerdictSpec(ng_threshold=0.9))

    verdict = judge(np.array([0.45, 0.25, 0.30], np.float32), strict, strict.verdict)

    assert (verdict.code, verdict.reason) == (VerdictCode.UNSURE, Reason.DEFECT_LEADS_BELOW_THRESHOLD)


def test_without_an_ok_label_no_part_is_ok() -> None:
    verdict = judge(np.array([0.3, 0.1, 0.3], np.float32), card(ok_labels=()), card().verdict)

    assert (verdict.code, verdict.reason) == (VerdictCode.UNSURE, Reason.NO_OK_LABEL)


def test_the_worst_window_is_judged_by_excess_not_by_probability() -> None:
    scores = np.array([[0.45, 0.0, 0.55], [0.0, 0.24, 0.76]], np.float32)

    assert worst_window(scores, card(), card().verdict) == 1  # 0.01 below crack's threshold beats 0.05 below pit's


def test_a_prediction_names_the_leader_its_lead_and_its_window() -> None:
    said = predict(np.array([0.2, 0.5, 0.3], np.float32), card(), tile=3)

    assert (said.label, said.tile) == ("crack", 3)
    assert said.margin == pytest.approx(0.2)
