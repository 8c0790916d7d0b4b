"""The paper's arithmetic: by hand, against independent implementations, and as properties."""

import doctest

import cv2
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import skimage.filters
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import ExplanationError, SettingsError
from inspect_xai.maths import sise
from inspect_xai.records import Baseline, SelectionRule

MU, ADA = SelectionRule.MU, SelectionRule.ADA
few = settings(max_examples=30, deadline=None)
unit_maps = npst.arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.floats(0, 1, width=32))


def test_examples_in_docstrings_hold():
    assert doctest.testmod(sise).failed == 0


class TestOtsu:
    def test_two_heaps_part_right_above_the_lower(self):
        # bins of 1/256 closed on the right: 0.25 is bin 63, whose upper edge is 0.25 itself
        assert sise.otsu([0.25, 0.25, 0.75]) == 0.25

    def test_threshold_is_the_first_of_a_plateau_and_the_split_is_what_greater_than_gives(self):
        values = np.array([0.1, 0.2, 0.9])
        assert sise.otsu(values) == 52 / 256  # 0.2 is in (51/256, 52/256]
        assert (values > sise.otsu(values)).tolist() == [False, False, True]

    def test_symmetric_splits_take_the_lower(self):
        assert sise.otsu([2 / 256, 129 / 256, 1.0]) == 2 / 256

    @pytest.mark.parametrize("value", [0.0, 1e-9, 0.3, 0.5, 1.0])
    def test_nothing_lies_above_the_threshold_of_a_constant(self, value: float):
        assert not np.any(np.full(5, value) > sise.otsu(np.full(5, value)))

    @few
    @given(npst.arrays(np.float64, st.integers(2, 300), elements=st.floats(0, 1)))
    def test_agrees_with_scikit_image_on_the_same_bins(self, values: np.ndarray):
        counts = np.histogram(np.ceil(values * 256) - 0.5, bins=256, range=(0, 256))[0]
        counts[0] += np.count_nonzero(values == 0)
        if np.count_nonzero(counts) < 2:
            return
        centers = (np.arange(256) + 0.5) / 256
        ours, theirs = sise.otsu(values), skimage.filters.threshold_otsu(hist=(counts, centers)) + 1 / 512
        if ours != theirs:  # equal variance in exact arithmetic, parted by rounding there
            variances = [_between_class_variance(counts, round(t * 256)) for t in (ours, theirs)]
            assert variances[0] == pytest.approx(variances[1], rel=1e-12)
            assert ours <= theirs

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_scikit_image_on_a_picture(self, seed: int):
        blob = np.random.default_rng(seed).random((40, 40)) ** 3
        blob = (blob - blob.min()) / (blob.max() - blob.min())
        center_of_bin = skimage.filters.threshold_otsu(blob, nbins=256)
        assert sise.otsu(blob) == pytest.approx(center_of_bin + 1 / 512, abs=1e-12)

    @pytest.mark.parametrize("values", [[], [0.5, np.nan], [0.5, 1.5], [-0.1, 0.2], [np.inf]])
    def test_refuses_what_is_not_in_the_unit_interval(self, values: list[float]):
        with pytest.raises(ExplanationError, match="Otsu"):
            sise.otsu(values)


def _between_class_variance(counts: np.ndarray, split: int) -> float:
    levels = np.arange(256)
    lower, upper = counts[:split], counts[split:]
    means = (levels[:split] @ lower) / lower.sum(), (levels[split:] @ upper) / upper.sum()
    return float(lower.sum() * upper.sum() * (means[0] - means[1]) ** 2)


class TestSelect:
    def test_mu_rule_is_strict(self):
        chosen = sise.select([4.0, 1.0, -3.0, 2.0, 0.0, 1.0625], rule=MU, mu=0.25)
        assert chosen.kept.tolist() == [0, 3, 5]
        assert (chosen.beta, chosen.threshold, chosen.positive) == (4.0, 1.0, 4)

    def test_mu_of_zero_keeps_every_positive_channel_and_no_other(self):
        assert sise.select([0.0, 1e-30, -1e-30, 5.0], rule=MU, mu=0).kept.tolist() == [1, 3]

    def test_ada_rule_finds_the_heap_of_strong_channels(self):
        alphas = [0.1, 0.11, 0.12, 0.1, 0.11, 0.12, -5.0, 0.9, 1.0]
        chosen = sise.select(alphas, rule=ADA, mu=0.3)
        assert chosen.kept.tolist() == [7, 8]
        assert chosen.threshold == 31 / 256  # right above 0.12, which is bin 30
        assert chosen.positive == 8

    @pytest.mark.parametrize("alphas", [[0.1] * 6 + [1.0], [2.0] * 20], ids=["seven positive", "all equal"])
    def test_ada_rule_keeps_all_where_a_histogram_says_nothing(self, alphas: list[float]):
        chosen = sise.select([*alphas, -1.0], rule=ADA, mu=0.3)
        assert chosen.kept.tolist() == list(range(len(alphas)))
        assert chosen.threshold == 0

    @pytest.mark.parametrize("rule", [MU, ADA])
    def test_selects_nothing_where_nothing_argues_for_the_class(self, rule: SelectionRule):
        chosen = sise.select([-1.0, 0.0, -2.0], rule=rule, mu=0.3)
        assert chosen.kept.tolist() == []
        assert (chosen.beta, chosen.positive) == (0.0, 0)

    @few
    @given(
        npst.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)).filter(np.any),
        st.sampled_from([MU, ADA]),
        st.integers(-20, 20),
    )
    def test_does_not_depend_on_the_scale_of_the_gradient(self, alphas: np.ndarray, rule: SelectionRule, power: int):
        scaled = alphas.astype(np.float64) * 2.0**power
        assert np.array_equal(sise.select(alphas, rule=rule, mu=0.3).kept, sise.select(scaled, rule=rule, mu=0.3).kept)

    @few
    @given(npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1)).filter(np.any))
    def test_threshold_tells_who_was_kept(self, alphas: np.ndarray):
        for rule in (MU, ADA):
            chosen = sise.select(alphas, rule=rule, mu=0.4)
            assert chosen.kept.tolist() == [i for i, a in enumerate(alphas) if a > 0 and a > chosen.threshold]
            assert len(chosen.kept) >= (chosen.positive > 0)

    @pytest.mark.parametrize("mu", [1.0, -0.1, np.nan])
    def test_refuses_a_mu_that_selects_nothing_or_everything(self, mu: float):
        with pytest.raises(SettingsError, match=r"mu is .*Expected .*use 0.3"):
            sise.select([1.0], rule=MU, mu=mu)

    @pytest.mark.parametrize("alphas", [[], [np.nan, 1.0], [np.inf], [0.0, 0.0], [[1.0]]])
    def test_refuses_numbers_that_mean_nothing(self, alphas: list[float]):
        with pytest.raises(ExplanationError):
            sise.select(alphas, rule=MU, mu=0.3)


class TestUpsample:
    def test_by_hand(self):
        # one axis doubles: samples at -1/4, 1/4, 3/4, 5/4 of a cell
        assert sise.upsample(np.array([[0.0, 4.0]]), (1, 4)).tolist() == [[0.0, 1.0, 3.0, 4.0]]

    def test_an_isolated_peak_shrinks_before_it_is_normalized(self):
        peak = np.zeros((5, 5), dtype=np.float32)
        peak[2, 2] = 1
        assert sise.upsample(peak, (10, 10)).max() == 0.5625

    @few
    @given(
        npst.arrays(
            np.float32, npst.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.floats(-9, 9, width=32)
        ),
        st.tuples(st.integers(1, 23), st.integers(1, 23)),
    )
    def test_equals_torch_upwards_and_downwards(self, maps: np.ndarray, size: tuple[int, int]):
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(maps.astype(np.float64))[None], size=size, mode="bilinear", align_corners=False
        )[0]
        np.testing.assert_allclose(sise.upsample(maps, size), theirs.numpy(), rtol=1e-6, atol=1e-6)

    def test_own_size_changes_nothing(self, rng: np.random.Generator):
        maps = rng.standard_normal((3, 5, 7)).astype(np.float32)
        assert np.array_equal(sise.upsample(maps, (5, 7)), maps)


class TestMasks:
    def test_by_hand(self):
        features = np.array([[[1.0, 3.0]], [[7.0, 7.0]]], dtype=np.float32)
        masks, minimum, span = sise.attribution_masks(features, (1, 4))
        assert masks.tolist() == [[[0.0, 0.25, 0.75, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]
        assert (minimum.tolist(), span.tolist()) == ([1.0, 7.0], [2.0, 0.0])

    def test_contrast_is_relative_for_large_values_and_absolute_for_small(self):
        ripple = np.array([[0.0, 1.0]])
        features = np.stack(
            [ripple, 2e-6 * ripple, 5e-7 * ripple, 1e4 + 0.005 * ripple, 1e4 + 0.02 * ripple, 0 * ripple]
        )
        assert sise.with_contrast(*sise.extremes(features, (4, 4))).tolist() == [True, True, False, False, True, False]

    @few
    @given(
        npst.arrays(
            np.float32,
            st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 6)),
            elements=st.floats(-2, 2, width=32) | st.floats(0, 2**-13, width=32) | st.just(1.0),
        ),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
    )
    def test_contrast_is_that_of_the_upsampled_map(self, features: np.ndarray, size: tuple[int, int]):
        wide = (
            torch.nn.functional.interpolate(
                torch.from_numpy(features.astype(np.float64))[:, None], size=size, mode="bilinear", align_corners=False
            )[:, 0].numpy()
            if len(features)
            else np.empty((0, *size))
        )
        spread = np.ptp(wide, axis=(1, 2))
        limit = 1e-6 * np.maximum(1, np.abs(wide).max(axis=(1, 2), initial=0))
        sure = np.abs(spread - limit) > 1e-12
        assert np.array_equal(sise.with_contrast(*sise.extremes(features, size))[sure], (spread > limit)[sure])

    @pytest.mark.parametrize("size", [(28, 28), (7, 12), (5, 3), (1, 1), (33, 20)])
    def test_extremes_are_those_of_the_upsampled_map(self, rng, size: tuple[int, int]):
        features = rng.standard_normal((20, 7, 6))
        wide = sise.interpolation(size[0], 7) @ features @ sise.interpolation(size[1], 6).T
        low, high = sise.extremes(features, size)
        np.testing.assert_allclose(low, wide.min(axis=(1, 2)), rtol=0, atol=1e-14)
        np.testing.assert_allclose(high, wide.max(axis=(1, 2)), rtol=0, atol=1e-14)

    def test_many_maps_are_looked_at_in_pieces(self, rng, monkeypatch: pytest.MonkeyPatch):
        features = rng.standard_normal((7, 4, 5))
        low, high = sise.extremes(features, (8, 8))
        monkeypatch.setattr(sise, "_CHUNK_VALUES", 130)  # two maps of 8 by 8 corners
        assert np.array_equal(sise.extremes(features, (8, 8)), (low, high))
        assert len(set(low)) == len(set(high)) == 7

    @pytest.mark.parametrize("call", [sise.extremes, sise.attribution_masks])
    def test_refuses_nan(self, call):
        with pytest.raises(ExplanationError, match="1 of 4 values"):
            call(np.array([[[0, 1], [np.nan, 2]]]), (4, 4))


class TestWeightedSums:
    def test_by_hand(self):
        # two maps at picture size: masks [0 1 1 0] and [0 0 0 1], masses 2 and 1, scores 1/2 and 1
        features = np.array([[[0, 2], [2, 0]], [[3, 3], [3, 5]]], dtype=np.float32)
        sums = sise.weighted_sums(features, [0.5, 1.0], size=(2, 2))
        assert sums.tolist() == [[0.0, 0.125], [0.125, 0.5]]
        block_map = sise.normalized(sums, (2, 2))
        assert block_map is not None
        assert block_map.tolist() == [[0.0, 0.25], [0.25, 1.0]]

    @pytest.mark.parametrize("offset", [0.0, -3.0, 1e3])
    @pytest.mark.parametrize("size", [(32, 48), (17, 5), (4, 6)])
    def test_equals_the_equations_on_materialised_masks(self, rng, offset: float, size: tuple[int, int]):
        features = (rng.standard_normal((9, 4, 6)) + offset).astype(np.float32)
        features[::2] = np.maximum(features[::2], offset)
        scores = rng.random(9).astype(np.float32)
        sums = sise.weighted_sums(features, scores, size=size)
        expected = _layer_map(features.astype(np.float64), scores, size)
        np.testing.assert_allclose(sise.upsample(sums, size), expected, rtol=0, atol=2e-6 * expected.max())
        stretched = (expected - expected.min()) / (expected.max() - expected.min())
        np.testing.assert_allclose(sise.normalized(sums, size), stretched, atol=2e-5)

    def test_a_ripple_on_a_large_offset_keeps_its_mass(self, rng):
        features = (1e4 + 0.05 * rng.random((3, 7, 7))).astype(np.float32)
        features[:, 3, 3] -= np.float32(0.05)  # upsampled, the dip's bottom lies between two float32 numbers
        sums = sise.weighted_sums(features, [0.2, 0.9, 0.4], size=(28, 28))
        expected = _layer_map(features.astype(np.float64), np.array([0.2, 0.9, 0.4]), (28, 28))
        np.testing.assert_allclose(sise.upsample(sums, (28, 28)), expected, atol=1e-6 * expected.max())

    def test_no_mask_gives_nothing(self):
        sums = sise.weighted_sums(np.empty((0, 3, 4), dtype=np.float32), [], size=(6, 8))
        assert sums.tolist() == [[0.0] * 4] * 3
        assert sise.normalized(sums, (6, 8)) is None

    def test_all_scores_zero_is_flat(self, rng):
        features = rng.random((3, 4, 4)).astype(np.float32)
        sums = sise.weighted_sums(features, [0, 0, 0], size=(4, 4))
        assert sise.normalized(sums, (8, 8)) is None

    def test_tiny_sums_are_not_flat(self):
        block_map = sise.normalized(np.array([[0, 1e-12], [0, 0]]), (2, 2))
        assert block_map is not None
        assert block_map.tolist() == [[0, 1], [0, 0]]

    @pytest.mark.parametrize("level", [0.0, 1e-12, 5.0, -1e6])
    def test_constant_sums_are_flat(self, level: float):
        assert sise.normalized(np.full((3, 3), level), (12, 12)) is None

    @pytest.mark.parametrize("spoiled", ["features", "scores"])
    def test_refuses_nan(self, spoiled: str):
        numbers = {"features": np.ones((2, 2, 2)), "scores": np.ones(2)}
        numbers[spoiled].flat[1] = np.nan
        with pytest.raises(ExplanationError, match="NaN"):
            sise.weighted_sums(**numbers, size=(4, 4))
        with pytest.raises(ExplanationError, match="NaN"):
            sise.normalized(np.array([[np.nan, 1]]), (4, 4))

    def test_refuses_numbers_for_other_masks(self):
        with pytest.raises(ValueError, match=r"2 feature maps came with \(3,\) scores"):
            sise.weighted_sums(np.ones((2, 2, 2)), [1, 1, 1], size=(4, 4))


def _layer_map(features: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Equations 9 to 12 to the letter, mask by mask."""
    total = np.zeros(size)
    for feature_map, score in zip(features, scores, strict=True):
        upsampled = torch.nn.functional.interpolate(
            torch.from_numpy(feature_map)[None, None], size=size, mode="bilinear", align_corners=False
        )[0, 0].numpy()
        mask = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min())
        total += score * (mask / mask.sum())
    return total / len(features)


class TestFuse:
    def test_by_hand(self):
        shallow = np.array([[0, 1, 0.5, 0.25]], dtype=np.float32)
        middle = np.array([[1, 0.75, 0, 0]], dtype=np.float32)
        deep = np.array([[0, 1, 1, 0.25]], dtype=np.float32)
        fusion = sise.fuse([shallow, middle, deep])
        # the middle map keeps pixels 0 and 1, the deepest 1 and 2
        assert fusion.otsu == (None, 1 / 256, 0.25)
        assert fusion.before_last.tolist() == [[1, 2.75, 1, 0.25]]
        assert fusion.fused.tolist() == [[0, 2.75, 1, 0]]
        assert fusion.deepest.tolist() == deep.tolist()
        rank = sise.rank_map(fusion.fused, fusion.before_last, fusion.deepest)
        assert rank.tolist() == [[2, 0, 1, 3]]

    @few
    @given(st.integers(1, 5).flatmap(lambda b: npst.arrays(np.float32, (b, 4, 5), elements=st.floats(0, 1, width=32))))
    def test_equals_its_closed_form(self, maps: np.ndarray):
        fusion = sise.fuse(list(maps))
        live = [m for m in maps if np.ptp(m) > 0]
        kept = [m > sise.otsu(m) for m in live]
        expected = np.zeros((4, 5))
        for b, block_map in enumerate(live):
            expected += block_map * np.prod(kept[max(b, 1) :], axis=0, initial=1)
        np.testing.assert_allclose(fusion.fused, expected, rtol=1e-6)
        assert fusion.fused.dtype == np.float32
        assert 0 <= fusion.fused.min() <= fusion.fused.max() <= len(maps)
        if len(live) > 1:
            assert not np.any(fusion.fused[~kept[-1]])
            assert np.all(fusion.fused[kept[-1]] >= live[-1][kept[-1]])
            assert np.array_equal(fusion.fused, fusion.before_last * kept[-1])

    def test_a_single_map_is_the_answer(self, rng):
        only = rng.random((4, 4)).astype(np.float32)
        fusion = sise.fuse([only])
        assert all(np.array_equal(part, only) for part in (fusion.fused, fusion.before_last, fusion.deepest))
        assert fusion.otsu == (None,)

    def test_constant_maps_are_passed_over(self, rng):
        maps = list(rng.random((2, 4, 4)).astype(np.float32))
        constant = np.full((4, 4), 0.5, dtype=np.float32)
        with_it, without = sise.fuse([constant, maps[0], constant, maps[1]]), sise.fuse(maps)
        assert np.array_equal(with_it.fused, without.fused)
        assert with_it.otsu == (None, None, None, without.otsu[1])
        assert not sise.fuse([constant]).fused.any()

    def test_refuses_nothing_and_nonsense(self):
        with pytest.raises(ExplanationError, match="no block map"):
            sise.fuse([])
        for wrong in (np.nan, 1.5):
            with pytest.raises(ExplanationError, match="Otsu"):
                sise.fuse([np.array([[0, wrong]], dtype=np.float32)])


class TestRank:
    def test_every_key_in_turn(self):
        fused = np.array([[0, 0, 0], [0, 5, 0]], dtype=np.float32)
        before_last = np.array([[0, 2, 0], [2, 0, 0]], dtype=np.float32)
        deepest = np.array([[0, 0.25, 0.5], [0.5, 1, 0]], dtype=np.float32)
        assert sise.rank_map(fused, before_last, deepest).tolist() == [[4, 2, 3], [1, 0, 5]]

    @few
    @given(unit_maps, st.data())
    def test_is_a_permutation_that_follows_the_map(self, fused: np.ndarray, data: st.DataObject):
        fused = np.where(fused < 0.5, 0, fused)
        rank = sise.rank_map(fused, fused, np.zeros_like(fused))
        assert sorted(rank.ravel().tolist()) == list(range(fused.size))
        assert np.all(np.diff(fused.ravel()[np.argsort(rank.ravel())]) <= 0)
        k = data.draw(st.integers(0, fused.size))
        taken = sise.top_k(rank, k)
        assert np.count_nonzero(taken) == k
        if 0 < k < fused.size:
            assert fused[taken].min() >= fused[~taken].max()

    @pytest.mark.parametrize("at_a_time", [1, 7, 1 << 20])
    def test_all_pixels_stand_where_sorting_all_of_them_puts_them(
        self, at_a_time: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sise, "_CHUNK_PIXELS", at_a_time)
        keys = [rng.integers(-1, 2, (9, 11)).astype(np.float32) for _ in range(3)]
        order = np.lexsort([-key.ravel() for key in reversed(keys)])

        rank = sise.rank_map(*keys)

        assert np.array_equal(rank.ravel()[order], np.arange(99))

    def test_a_map_of_zeros_still_gives_exactly_k(self):
        zeros = np.zeros((3, 4), dtype=np.float32)
        assert sise.top_k(sise.rank_map(zeros, zeros, zeros), 5).ravel().tolist() == [True] * 5 + [False] * 7

    @pytest.mark.parametrize("k", [-1, 5])
    def test_refuses_more_pixels_than_there_are(self, k: int):
        with pytest.raises(ValueError, match=f"{k} pixels of a map with 4"):
            sise.top_k(np.arange(4).reshape(2, 2), k)

    def test_refuses_nan(self):
        ones = np.ones((2, 2))
        with pytest.raises(ExplanationError):
            sise.rank_map(ones, ones * np.nan, ones)


class TestBaseline:
    def test_black_and_mean(self):
        picture = np.full((2, 3, 3), 9, dtype=np.float32)
        assert not sise.baseline_picture(picture, Baseline.BLACK, mean=[1, 2, 3]).any()
        assert sise.baseline_picture(picture, Baseline.MEAN, mean=[1, 2, 3])[1, 2].tolist() == [1, 2, 3]
        assert sise.baseline_picture(picture[..., :1], Baseline.MEAN, mean=[7.5]).tolist() == [[[7.5]] * 3] * 2

    @pytest.mark.parametrize("depth", [1, 3])
    def test_blur_keeps_the_shape_and_wipes_out_a_cell(self, depth: int):
        picture = np.zeros((224, 224, depth), dtype=np.float32)
        picture[96:128, 96:128] = 255
        blurred = sise.baseline_picture(picture, Baseline.BLUR, mean=[0])
        assert blurred.shape == picture.shape
        assert blurred.sum() == pytest.approx(picture.sum(), rel=1e-3)
        expected = skimage.filters.gaussian(picture[..., 0], sigma=14, mode="mirror", truncate=4, preserve_range=True)
        np.testing.assert_allclose(blurred[..., 0], expected, atol=0.15)

    def test_blur_of_a_constant_is_that_constant(self):
        picture = np.full((20, 30, 3), 80, dtype=np.float32)
        np.testing.assert_allclose(sise.baseline_picture(picture, Baseline.BLUR, mean=[0]), picture, rtol=1e-5)


def test_the_resize_that_opencv_does_is_the_same(rng):
    maps = rng.random((7, 5)).astype(np.float32)
    np.testing.assert_allclose(sise.upsample(maps, (28, 30)), cv2.resize(maps, (30, 28)), atol=1e-6)
