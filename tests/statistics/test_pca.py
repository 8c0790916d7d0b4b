"""Where parts lie in many numbers at once: by hand, against scipy, and what single numbers do not show."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import ks_2samp

from inspect_xai.reports.drift import leading
from inspect_xai.statistics.drift import Alarm, Cell, Rule
from inspect_xai.statistics.pca import fit_pca

PLACE = ("L1", "S1")


def test_a_square_by_hand() -> None:
    """Corners (+-2, +-1): variances 16/3 and 4/3, so a corner lies at (+-sqrt 3/2, +-sqrt 3/2)."""
    corners = np.array([[-2.0, -1.0], [-2.0, 1.0], [2.0, -1.0], [2.0, 1.0]])
    cloud = fit_pca(corners + 10)
    assert cloud is not None
    assert cloud.center.tolist() == [10, 10]
    np.testing.assert_allclose(cloud.components(corners + 10), np.sign(corners) * np.sqrt(0.75), atol=1e-12)
    np.testing.assert_allclose(cloud.distances(corners + 10), np.sqrt(0.75))


def test_components_do_not_go_together_and_distances_are_mahalanobis(rng: np.random.Generator) -> None:
    parts = rng.normal(0, 1, (300, 5)) @ rng.normal(0, 1, (5, 5)) + 7
    cloud = fit_pca(parts)
    assert cloud is not None
    np.testing.assert_allclose(np.cov(cloud.components(parts), rowvar=False), np.eye(5), atol=1e-9)
    inverse = np.linalg.inv(np.cov(parts, rowvar=False))
    expected = [mahalanobis(part, parts.mean(axis=0), inverse) / np.sqrt(5) for part in parts[:20]]
    np.testing.assert_allclose(cloud.distances(parts[:20]), expected, rtol=1e-9)


def test_directions_without_scatter_are_left_out_and_a_point_is_no_cloud(rng: np.random.Generator) -> None:
    parts = rng.normal(0, 1, (50, 3))
    parts[:, 2] = 30.0
    cloud = fit_pca(parts)
    assert cloud is not None
    assert cloud.components(parts).shape == (50, 2)
    assert fit_pca(np.ones((9, 3))) is None
    assert fit_pca(np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 1.0]])) is None


def test_a_part_without_numbers_has_no_place(rng: np.random.Generator) -> None:
    parts = rng.normal(0, 1, (50, 2))
    parts[3, 1] = np.nan
    cloud = fit_pca(parts)
    assert cloud is not None
    assert np.flatnonzero(np.isnan(cloud.distances(parts))).tolist() == [3]


def test_what_no_longer_goes_together_is_seen_though_each_number_hardly_moves(rng: np.random.Generator) -> None:
    """Contrast that follows brightness up to 0.1 sigma, and then lies 0.3 sigma higher."""
    bright = rng.normal(0, 1, (2, 400))
    contrast = bright + rng.normal(0, 0.1, (2, 400)) + [[0.0], [0.3]]
    quiet, today = (np.column_stack(pair) for pair in zip(bright, contrast, strict=True))
    cloud = fit_pca(quiet)
    assert cloud is not None
    alone = max(ks_2samp(quiet[:, n], today[:, n]).statistic for n in range(2))
    together = ks_2samp(cloud.components(quiet)[:, 1], cloud.components(today)[:, 1]).statistic
    assert alone < 0.2
    assert together > 0.7


def alarm(
    feature: str, day: int, size: float = 0.5, *, place: tuple[str, ...] = PLACE, rule: Rule = Rule.DAYS
) -> Alarm:
    """An alarm with what `leading` looks at."""
    return Alarm(Cell(place, feature), rule, day, day - 1, size, 0.1, 1e-9, 1e-8)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ([("picture 1", 2, 0.4), ("picture 3", 2, 0.9), ("picture 4", 3, 0.9)], [("picture 3", 2)]),
        ([("brightness", 2, 0.3), ("picture 3", 2, 0.9), ("picture 3", 4, 0.9)], [("brightness", 2)]),
        ([("picture 3", 2, 0.9), ("brightness", 3, 0.3)], [("picture 3", 2), ("brightness", 3)]),
        (
            [("score", 2, 0.9), ("picture 3", 2, 0.3), ("embedding 7", 2, 0.4)],
            [("embedding 7", 2), ("picture 3", 2), ("score", 2)],
        ),
        ([("embedding", 2, 0.3), ("embedding 7", 2, 0.4)], [("embedding", 2)]),
    ],
)
def test_one_cause_is_told_once(raised: list[tuple[str, int, float]], told: list[tuple[str, int]]) -> None:
    given = [alarm(*each) for each in raised]
    assert [(each.cell.feature, each.day) for each in leading(given)] == told


def test_what_moved_at_once_is_no_creeping() -> None:
    at_once, creeps = alarm("noise", 3), alarm("noise", 2, rule=Rule.EWMA)
    assert leading([creeps, at_once]) == [at_once]
    assert leading([creeps, alarm("score", 3)]) == [creeps, alarm("score", 3)]


def test_another_place_is_another_cause() -> None:
    given = [alarm("picture 1", 2), alarm("picture 1", 2, place=("L1", "S2"))]
    assert leading(given) == given
