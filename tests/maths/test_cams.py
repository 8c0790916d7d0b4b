"""Rival methods: against plain torch with autograd, by hand, and on toys whose truth is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import ExplanationError
from inspect_xai.maths import cams
from inspect_xai.maths.sise import attribution_masks

few = settings(max_examples=25, deadline=None)


class Toy(torch.nn.Module):
    """Two convolutions with a block end between them; `linear_head` leaves pooling and one matrix behind the block."""

    def __init__(self, *, linear_head: bool) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2), torch.nn.ReLU())
        behind = [] if linear_head else [torch.nn.Conv2d(5, 5, 3), torch.nn.ReLU()]
        self.head = torch.nn.Sequential(
            *behind, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 3)
        )
        self.double()

    def look(self, target: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Feature maps (C, h, w), their gradient and the score of `target` on a fixed picture (13, 17)."""
        torch.manual_seed(12)
        features = self.body(torch.rand(1, 3, 13, 17).double()).detach().requires_grad_()
        score = self.head(features)[0, target]
        (gradients,) = torch.autograd.grad(score, features)
        return features.detach()[0], gradients[0], score.detach()


@pytest.fixture(params=[True, False], ids=["linear head", "deep head"])
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(linear_head=request.param)


class TestGradientMethods:
    @pytest.mark.parametrize("target", [0, 1, 2])
    def test_grad_cam_equals_torch(self, toy: Toy, target: int):
        features, gradients, _ = toy.look(target)
        expected = torch.zeros(features.shape[1:]).double()
        for feature_map, gradient in zip(features, gradients, strict=True):
            expected += gradient.mean() * feature_map
        np.testing.assert_allclose(cams.grad_cam(features.numpy(), gradients.numpy()), expected, rtol=1e-5, atol=1e-9)

    @pytest.mark.parametrize("target", [0, 1, 2])
    def test_hires_cam_and_layer_cam_equal_torch(self, toy: Toy, target: int):
        features, gradients, _ = toy.look(target)
        hires = cams.hires_cam(features.numpy(), gradients.numpy())
        layer = cams.layer_cam(features.numpy(), gradients.numpy())
        np.testing.assert_allclose(hires, (features * gradients).sum(0), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(layer, (features * torch.relu(gradients)).sum(0), rtol=1e-5, atol=1e-9)

    def test_hires_cam_adds_up_to_the_score_of_a_linear_head_and_grad_cam_is_the_same_there(self):
        toy = Toy(linear_head=True)
        features, gradients, score = toy.look(1)
        hires = cams.hires_cam(features.numpy(), gradients.numpy())
        assert hires.sum() == pytest.approx(float(score - toy.head[-1].bias[1].detach()), rel=1e-5)
        np.testing.assert_allclose(cams.grad_cam(features.numpy(), gradients.numpy()), hires, rtol=1e-5, atol=1e-9)

    def test_grad_cam_plus_plus_equals_the_papers_higher_derivatives(self):
        # Y = exp(S) with S linear in the features, as the paper assumes, each derivative taken by autograd.
        torch.manual_seed(3)
        features = torch.rand(3, 2, 4).double().requires_grad_()
        slope = torch.randn(3, 2, 4).double()
        outcome = torch.exp((slope * features).sum())
        (first,) = torch.autograd.grad(outcome, features, create_graph=True)
        second, third = torch.zeros_like(slope), torch.zeros_like(slope)
        for place in np.ndindex(3, 2, 4):
            (twice,) = torch.autograd.grad(first[place], features, create_graph=True)
            second[place] = twice[place].detach()
            (thrice,) = torch.autograd.grad(twice[place], features, retain_graph=True)
            third[place] = thrice[place]
        plain = features.detach()
        alpha = second / (2 * second + plain.sum((1, 2), keepdim=True) * third)
        weights = (alpha * torch.relu(first.detach())).sum((1, 2)) / outcome.detach()
        expected = (weights[:, None, None] * plain).sum(0)
        np.testing.assert_allclose(cams.grad_cam_plus_plus(plain.numpy(), slope.numpy()), expected, rtol=1e-5)

    def test_grad_cam_plus_plus_survives_signed_maps(self):
        # sum(A) = -2 and g = 1 bring the denominator to 0
        found = cams.grad_cam_plus_plus(np.array([[[-3.0, 1.0]]]), np.array([[[1.0, 0.5]]]))
        assert found.tolist() == [[-1.5, 0.5]]  # the other place: 0.5 / (2 - 1)

    def test_by_hand(self):
        features = np.array([[[1, 0]], [[2, 4]]], dtype=np.float32)
        gradients = np.array([[[3, 1]], [[-2, 1]]], dtype=np.float32)
        assert cams.grad_cam(features, gradients).tolist() == [[1, -2]]  # weights 2 and -1/2
        assert cams.hires_cam(features, gradients).tolist() == [[-1, 4]]
        assert cams.layer_cam(features, gradients).tolist() == [[3, 4]]


class TestScoreCam:
    def test_weights_are_a_softmax_and_the_baselines_score_cancels(self, rng):
        scores = rng.random(9)
        expected = torch.softmax(torch.from_numpy(scores), 0).numpy()
        np.testing.assert_allclose(cams.score_cam_weights(scores), expected, rtol=1e-12)
        np.testing.assert_allclose(cams.score_cam_weights(scores - 0.37), expected, rtol=1e-12)
        assert cams.score_cam_weights([1000.0, 0.0]).tolist() == [1, 0]

    def test_equals_torch_with_masks_at_picture_size(self, toy: Toy):
        features = toy.look(0)[0].float()
        torch.manual_seed(12)
        picture = torch.rand(1, 3, 13, 17).double()
        masks, _, span = attribution_masks(features.numpy(), (13, 17))
        kept = span > 0
        with torch.no_grad():
            scores = torch.softmax(toy.head(toy.body(torch.from_numpy(masks[kept])[:, None] * picture)), 1)[:, 0]
        expected = torch.zeros(13, 17).double()
        wide = torch.nn.functional.interpolate(features[None].double(), (13, 17), mode="bilinear")[0]
        for weight, feature_map in zip(torch.softmax(scores, 0), wide[torch.from_numpy(kept)], strict=True):
            expected += weight * feature_map
        found, _ = cams.evidence_map(cams.score_cam(features.numpy()[kept], scores.numpy()), (13, 17))
        np.testing.assert_allclose(found, torch.relu(expected), rtol=1e-5, atol=1e-7)


class TestEvidenceMap:
    def test_negative_places_are_zero_but_keep_their_order(self):
        evidence, rank = cams.evidence_map(np.array([[2.0, -3.0], [-1.0, 0.5]]), (2, 2))
        assert evidence.tolist() == [[2, 0], [0, 0.5]]
        assert rank.tolist() == [[0, 3], [2, 1]]

    def test_is_cut_off_before_it_is_enlarged(self):
        evidence, _ = cams.evidence_map(np.array([[4.0, -4.0]]), (1, 4))
        assert evidence.tolist() == [[4, 3, 1, 0]]

    def test_refuses_nan(self):
        with pytest.raises(ExplanationError, match="NaN"):
            cams.evidence_map(np.array([[np.nan, 1.0]]), (2, 4))


class TestRise:
    def test_masks_are_enlarged_grids_shifted_and_stretched(self):
        (masks,) = cams.rise_masks((20, 20), seed=4, count=6, chunk=6, cells=5, seen=0.4)
        rng = np.random.default_rng(4)
        for mask in masks:
            grid = torch.from_numpy((rng.random((5, 5)) < 0.4).astype(np.float64))
            top, left = rng.integers(0, 4, 2)
            wide = torch.nn.functional.interpolate(grid[None, None], (24, 24), mode="bilinear")[0, 0].numpy()
            shifted = wide[top : top + 20, left : left + 20]
            stretched = (shifted - shifted.min()) / (shifted.max() - shifted.min())
            np.testing.assert_allclose(mask, stretched, atol=1e-6)

    @few
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 12))
    def test_masks_do_not_depend_on_the_chunk_and_stay_in_0_to_1(self, h: int, w: int, cells: int, chunk: int):
        whole = np.concatenate(list(cams.rise_masks((h, w), seed=1, count=12, chunk=12, cells=cells)))
        pieces = list(cams.rise_masks((h, w), seed=1, count=12, chunk=chunk, cells=cells))
        assert whole.shape == (12, h, w)
        assert max(len(piece) for piece in pieces) <= chunk
        assert np.array_equal(np.concatenate(pieces), whole)
        assert whole.min() >= 0
        assert whole.max() <= 1

    def test_every_pixel_is_seen_equally_often_and_seeds_differ(self):
        (masks,) = cams.rise_masks((64, 128), seed=0, count=1500, chunk=1500)
        assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.06
        (others,) = cams.rise_masks((64, 128), seed=1, count=1, chunk=1)
        assert not np.array_equal(masks[0], others[0])

    @few
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    def test_running_statistics_equal_those_of_all_at_once(self, sizes: list[int]):
        rng = np.random.default_rng(sum(sizes))
        estimate, seen = cams.RiseEstimate.empty((3, 4)), []
        for size in sizes:
            masks, scores = rng.random((size, 3, 4)).astype(np.float32), rng.random(size)
            estimate = estimate.add(masks, scores)
            seen.extend(scores[:, None, None] * masks)
        assert estimate.count == len(seen)
        if seen:
            np.testing.assert_allclose(estimate.mean, np.mean(seen, axis=0), rtol=1e-9)
            np.testing.assert_allclose(estimate.squares, np.var(seen, axis=0) * len(seen), rtol=1e-7, atol=1e-12)

    def test_noise_by_hand(self):
        assert cams.RiseEstimate.empty((2, 2)).noise() == np.inf
        masks = np.array([[[1, 0]], [[1, 1]]], dtype=np.float32)
        estimate = cams.RiseEstimate.empty((1, 2)).add(masks, [1.0, 1.0])
        # means 1 and 1/2; standard errors 0 and 1/2; root mean square sqrt(1/8) over a spread of 1/4
        assert estimate.noise() == pytest.approx(np.sqrt(1 / 8) / (1 / 4))
        assert estimate.signed().tolist() == [[0.5, 0]]

    def test_stops_when_settled_and_then_points_at_what_counts(self):
        # The score is the share of a small square that is seen.
        truth = np.zeros((42, 42), dtype=bool)
        truth[9:15, 24:30] = True
        estimate = cams.RiseEstimate.empty(truth.shape)
        noises = []
        for masks in cams.rise_masks(truth.shape, seed=5, count=8000, chunk=250):
            estimate = estimate.add(masks, masks[:, truth].mean(axis=1))
            noises.append(estimate.noise())
            if noises[-1] < cams.RISE_NOISE:
                break
        assert 1000 <= estimate.count < 5000
        assert noises[-1] < cams.RISE_NOISE < noises[-2]
        limit = cams.RiseEstimate.empty(truth.shape)
        for masks in cams.rise_masks(truth.shape, seed=6, count=8000, chunk=500):
            limit = limit.add(masks, masks[:, truth].mean(axis=1))
        assert np.corrcoef(estimate.signed().ravel(), limit.signed().ravel())[0, 1] == pytest.approx(0.97, abs=0.015)
        evidence, rank = cams.evidence_map(limit.signed(), truth.shape)
        assert truth[rank == 0].all()
        assert evidence.min() == 0

    def test_refuses_scores_of_other_masks(self):
        with pytest.raises(ExplanationError, match="2 masks came with scores"):
            cams.RiseEstimate.empty((2, 2)).add(np.ones((2, 2, 2), dtype=np.float32), [1.0])
        with pytest.raises(ExplanationError, match="one finite score for each"):
            cams.RiseEstimate.empty((2, 2)).add(np.ones((1, 2, 2), dtype=np.float32), [np.nan])


class TestReciproCam:
    def test_masks_by_hand(self):
        assert cams.recipro_masks((2, 2), spread=False).tolist() == [
            [[1, 0], [0, 0]],
            [[0, 1], [0, 0]],
            [[0, 0], [1, 0]],
            [[0, 0], [0, 1]],
        ]
        middle = cams.recipro_masks((3, 3))[4]
        assert (16 * middle).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
        assert (16 * cams.recipro_masks((3, 3))[0]).tolist() == [[4, 2, 0], [2, 1, 0], [0, 0, 0]]

    @pytest.mark.parametrize("spread", [True, False])
    def test_equals_torch_place_by_place(self, toy: Toy, spread: bool):
        features = toy.look(2)[0].float()
        _, h, w = features.shape
        around = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        expected = torch.zeros(h, w).double()
        with torch.no_grad():
            for i in range(h):
                for j in range(w):
                    alone = torch.zeros_like(features)
                    for down in (-1, 0, 1):
                        for right in (-1, 0, 1):
                            y, x = i + down, j + right
                            if 0 <= y < h and 0 <= x < w:
                                share = around[down + 1, right + 1] if spread else float(down == right == 0)
                                alone[:, y, x] = share * features[:, y, x]
                    expected[i, j] = torch.softmax(toy.head(alone[None].double()), 1)[0, 2]
            scores = [
                torch.softmax(toy.head(torch.from_numpy(chunk).double()), 1)[:, 2].numpy()
                for chunk in cams.recipro_features(features.numpy(), chunk=7, spread=spread)
            ]
        assert {len(chunk) for chunk in scores} == {7, h * w % 7}
        found = cams.recipro_cam(np.concatenate(scores), (h, w))
        np.testing.assert_allclose(found, expected - expected.min(), atol=1e-6)


class TestOcclusion:
    def test_by_hand(self):
        # patches of 2 in a row of 5, two apart: [0 1], [2 3], and the last at the border, [3 4]
        masks = np.concatenate(list(cams.occlusion_masks((1, 5), patch=2, stride=2, chunk=2)))
        assert masks[:, 0].tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 0, 0]]
        found = cams.occlusion_map([0.5, 1.0, 0.25], (1, 5), full=0.75, patch=2, stride=2)
        assert found.tolist() == [[0.25, 0.25, -0.25, 0.125, 0.5]]

    @few
    @given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
    def test_every_pixel_is_hidden_in_some_chunk(self, h: int, w: int, patch: int, stride: int, chunk: int):
        stride = min(stride, patch)
        masks = np.concatenate(list(cams.occlusion_masks((h, w), patch=patch, stride=stride, chunk=chunk)))
        assert len(masks) == len(cams.occlusion_windows((h, w), patch=patch, stride=stride))
        assert np.all((masks == 0) | (masks == 1))
        assert not masks.min(axis=0).any()
        assert np.all((masks == 0).sum(axis=(1, 2)) == min(patch, h) * min(patch, w))
        # a score that is the share of the window seen drops by the same everywhere
        found = cams.occlusion_map(masks.mean(axis=(1, 2)), (h, w), full=1.0, patch=patch, stride=stride)
        np.testing.assert_allclose(found, min(patch, h) * min(patch, w) / (h * w), rtol=1e-5, atol=1e-7)

    def test_points_at_what_counts(self):
        truth = np.zeros((20, 20), dtype=bool)
        truth[4:7, 12:15] = True
        masks = np.concatenate(list(cams.occlusion_masks((20, 20), patch=3, stride=1, chunk=50)))
        found = cams.occlusion_map(masks[:, truth].mean(axis=1), (20, 20), full=1.0, patch=3, stride=1)
        assert np.unravel_index(found.argmax(), found.shape) == (5, 13)
