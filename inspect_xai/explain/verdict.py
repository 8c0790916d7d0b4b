"""Prediction and verdict from the network's probabilities, as pure functions."""

import numpy as np
from numpy.typing import NDArray

from inspect_xai.records import ModelCard, Prediction, Reason, Verdict, VerdictCode, VerdictSpec


def excess(scores: NDArray[np.float32], card: ModelCard, thresholds: VerdictSpec) -> NDArray[np.float64]:
    """Return how far each defect label lies above its threshold, (..., D) of scores (..., K), in the card's order."""
    columns = [card.labels.index(label) for label in card.defect_labels]
    limits = np.array([thresholds.of(label) for label in card.defect_labels])
    over: NDArray[np.float64] = np.asarray(scores, np.float64)[..., columns] - limits
    return over


def worst_window(scores: NDArray[np.float32], card: ModelCard, thresholds: VerdictSpec) -> int:
    """Return the window (N, K) -> int whose defect lies furthest above (or nearest below) its threshold."""
    return int(np.argmax(excess(scores, card, thresholds).max(axis=-1)))


def predict(scores: NDArray[np.float32], card: ModelCard, *, tile: int = 0) -> Prediction:
    """Return the most probable label of a window's scores (K,), the first one on a tie, and its lead over the next."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    best = float(scores[order[0]])
    runner_up = float(scores[order[1]]) if len(order) > 1 else 0.0
    return Prediction(tuple(float(p) for p in scores), card.labels[int(order[0])], best, best - runner_up, tile)


def judge(scores: NDArray[np.float32], card: ModelCard, thresholds: VerdictSpec) -> Verdict:
    """Decide what the line should do with a part.

    NG when a defect label reaches its threshold. Otherwise OK needs three things: an OK label leads, no defect label
    is within the margin below its threshold, and the card has an OK label at all. Everything else is UNSURE.

    Args:
        scores: (K,) probabilities of the worst window.
        card: The model's card.
        thresholds: The card's, or the policy's in their place.

    Returns:
        The verdict with the defect label that decided it (furthest over, or nearest below, its threshold).
    """
    over = excess(scores, card, thresholds)
    decisive = int(np.argmax(over))
    label = card.defect_labels[decisive]
    if over[decisive] >= 0:
        code, reason = VerdictCode.NG, Reason.DEFECT_OVER_THRESHOLD
    elif not card.ok_labels:
        code, reason = VerdictCode.UNSURE, Reason.NO_OK_LABEL
    elif over[decisive] >= -thresholds.unsure_margin:
        code, reason = VerdictCode.UNSURE, Reason.DEFECT_NEAR_THRESHOLD
    elif predict(scores, card).label not in card.ok_labels:
        code, reason = VerdictCode.UNSURE, Reason.DEFECT_LEADS_BELOW_THRESHOLD
    else:
        code, reason = VerdictCode.OK, Reason.CLEAR
    return Verdict(code, reason, label, float(scores[card.labels.index(label)]), thresholds.of(label))
