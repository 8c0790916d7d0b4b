"""The attribute study of AIAG's Measurement Systems Analysis, 4th edition, chapter III section C."""

import numpy as np


def aiag() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """50 parts x appraisers A, B, C x 3 trials: the 11 parts that are judged in two ways, then 26 good and 13 bad."""
    mixed = {  # part: reference, A, B, C
        6: "1 110 110 100",
        7: "1 111 111 110",
        12: "0 000 000 010",
        14: "1 110 111 100",
        21: "1 110 101 010",
        22: "0 001 010 110",
        26: "0 010 000 001",
        30: "0 000 001 000",
        34: "0 001 001 011",
        36: "1 110 111 101",
        43: "1 101 111 110",
    }
    rows = [row.split() for row in mixed.values()] + [["1", *["111"] * 3]] * 28 + [["0", *["000"] * 3]] * 11
    answers = {who: np.array([list(row[i]) for row in rows]) for i, who in enumerate("ABC", start=1)}
    return answers, np.array([row[0] for row in rows])
