"""A picture and its windows: nothing lost, nothing shifted, nothing shrunk unless the card says so."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.maths import sise, tiles
from inspect_xai.records import Channels, Fit, InputSpec, Tile

few = settings(max_examples=30, deadline=None)
sides = st.integers(1, 60)
COVERING = [fit for fit in Fit if fit is not Fit.CENTER_CROP]


def spec_of(height: int, width: int, **rest) -> InputSpec:
    return InputSpec(height=height, width=width, **rest)


def boxes(found: tuple[Tile, ...]) -> list[tuple[int, int, int, int]]:
    assert [tile.index for tile in found] == list(range(len(found)))
    return [(tile.top_px, tile.left_px, tile.height_px, tile.width_px) for tile in found]


class TestAsChannels:
    def test_orders_and_depths(self):
        rgb = np.array([[[10, 20, 30], [255, 255, 255]]], dtype=np.uint8)
        assert tiles.as_channels(rgb, Channels.RGB).tolist() == [[[10, 20, 30], [255, 255, 255]]]
        assert tiles.as_channels(rgb, Channels.BGR).tolist() == [[[30, 20, 10], [255, 255, 255]]]
        # 0.299 * 10 + 0.587 * 20 + 0.114 * 30 = 18.15
        assert tiles.as_channels(rgb, Channels.GRAY).tolist() == [[[18], [255]]]

    @pytest.mark.parametrize(("channels", "depth"), [(Channels.GRAY, 1), (Channels.RGB, 3), (Channels.BGR, 3)])
    def test_gray_is_repeated(self, channels: Channels, depth: int):
        assert tiles.as_channels(np.array([[7, 9]], dtype=np.uint8), channels).tolist() == [[[7] * depth, [9] * depth]]

    @pytest.mark.parametrize(
        "picture",
        [
            np.zeros((2, 2), dtype=np.float32),
            np.zeros((2, 2, 4), dtype=np.uint8),
            np.zeros((0, 3), dtype=np.uint8),
            np.zeros(5, dtype=np.uint8),
            np.zeros((1, 2, 2, 3), dtype=np.uint8),
        ],
        ids=lambda picture: f"{picture.dtype}{picture.shape}",
    )
    def test_refuses_what_is_no_picture(self, picture: np.ndarray):
        with pytest.raises(PictureError, match=r"the picture is .* of shape .*Expected uint8"):
            tiles.as_channels(picture, Channels.RGB)


class TestWindows:
    def test_a_strip_is_cut_at_native_scale(self):
        found = boxes(tiles.windows((256, 1600), spec_of(256, 256, tile_overlap=0.25)))
        assert found == [(0, left, 256, 256) for left in (0, 192, 384, 576, 768, 960, 1152, 1344)]

    def test_a_narrow_picture_sits_in_the_middle_of_its_windows(self):
        assert boxes(tiles.windows((5, 16), spec_of(10, 10, tile_overlap=0.25))) == [(-2, 0, 10, 10), (-2, 6, 10, 10)]

    def test_the_networks_own_size_is_one_window(self):
        assert boxes(tiles.windows((224, 224), spec_of(224, 224))) == [(0, 0, 224, 224)]

    def test_stretch_is_the_picture(self):
        assert boxes(tiles.windows((30, 70), spec_of(8, 8, fit=Fit.STRETCH))) == [(0, 0, 30, 70)]

    def test_letterbox_keeps_the_proportions(self):
        assert boxes(tiles.windows((30, 70), spec_of(8, 8, fit=Fit.LETTERBOX))) == [(-20, 0, 70, 70)]
        assert boxes(tiles.windows((40, 20), spec_of(10, 20, fit=Fit.LETTERBOX))) == [(0, -30, 40, 80)]

    @few
    @given(sides, sides, st.integers(1, 20), st.integers(1, 20), st.floats(0, 0.95))
    def test_tiles_cover_everything_and_overlap_enough(self, h: int, w: int, height: int, width: int, overlap: float):
        found = tiles.windows((h, w), spec_of(height, width, tile_overlap=overlap))
        covered = np.zeros((h, w), dtype=bool)
        for tile in found:
            assert (tile.height_px, tile.width_px) == (height, width)
            covered[max(0, tile.top_px) : tile.top_px + height, max(0, tile.left_px) : tile.left_px + width] = True
        assert covered.all()
        for length, window, starts in (
            (h, height, sorted({tile.top_px for tile in found})),
            (w, width, sorted({tile.left_px for tile in found})),
        ):
            if length > window:
                assert (starts[0], starts[-1]) == (0, length - window)
                assert max(np.diff(starts)) <= max(1, window * (1 - overlap) + 1e-6)
                assert np.ptp(np.diff(starts)) <= 1
            else:
                assert len(starts) == 1
                assert abs(-starts[0] - (window - length + starts[0])) <= 1

    @few
    @given(sides, sides, st.integers(1, 20), st.integers(1, 20))
    def test_a_letterbox_holds_the_picture(self, h: int, w: int, height: int, width: int):
        (tile,) = tiles.windows((h, w), spec_of(height, width, fit=Fit.LETTERBOX))
        assert tile.top_px <= 0
        assert tile.left_px <= 0
        assert tile.top_px + tile.height_px >= h
        assert tile.left_px + tile.width_px >= w
        assert tile.height_px == h or tile.width_px == w
        assert abs(tile.height_px / height - tile.width_px / width) <= 0.5 / min(height, width) + 1e-9

    def test_refuses_nothing_and_a_window_that_never_moves(self):
        with pytest.raises(PictureError, match="0 rows"):
            tiles.windows((0, 5), spec_of(4, 4))
        with pytest.raises(SettingsError, match=r"tile_overlap is 1\.0"):
            tiles.windows((9, 9), spec_of(4, 4, tile_overlap=1.0))


class TestCut:
    @few
    @given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 30), st.integers(1, 30))
    def test_outside_is_mirrored_as_numpy_does(self, h: int, w: int, height: int, width: int):
        picture = np.arange(h * w, dtype=np.uint8).reshape(h, w, 1)
        spec = spec_of(height, width, tile_overlap=0)
        for tile in tiles.windows((h, w), spec):
            room = 40
            padded = np.pad(picture, ((room, room), (room, room), (0, 0)), mode="reflect")
            top, left = room + tile.top_px, room + tile.left_px
            expected = padded[top : top + height, left : left + width]
            found = tiles.cut(picture, tile, spec)
            assert found.dtype == np.float32
            assert np.array_equal(found, expected)

    def test_a_stretched_picture_is_averaged_where_it_shrinks_and_bilinear_where_it_grows(self):
        picture = np.array([[[0], [100], [200], [40]]], dtype=np.uint8)
        spec = spec_of(2, 2, fit=Fit.STRETCH)
        (tile,) = tiles.windows((1, 4), spec)
        assert tiles.cut(picture, tile, spec)[..., 0].tolist() == [[50, 120], [50, 120]]
        grown = spec_of(1, 8, fit=Fit.STRETCH)
        assert tiles.cut(picture, tile, grown)[0, :3, 0].tolist() == [0, 25, 75]

    def test_a_letterbox_is_filled_with_the_cards_mean(self):
        picture = np.full((2, 4, 3), 200, dtype=np.uint8)
        spec = spec_of(4, 4, fit=Fit.LETTERBOX, mean=(0.5, 0.25, 0.0), scale=255.0)
        (tile,) = tiles.windows((2, 4), spec)
        window = tiles.cut(picture, tile, spec)
        assert window[0, 0].tolist() == window[3, 3].tolist() == [128, 64, 0]
        assert np.all(window[1:3] == 200)

    def test_a_scratch_one_pixel_wide_survives_shrinking(self):
        picture = np.zeros((256, 1600, 1), dtype=np.uint8)
        picture[:, 801] = 255
        spec = spec_of(224, 224, fit=Fit.STRETCH)
        (tile,) = tiles.windows((256, 1600), spec)
        assert tiles.cut(picture, tile, spec).max() > 30
        assert not cv2.resize(picture, (224, 224), interpolation=cv2.INTER_LINEAR).any()


class TestLongPictures:
    """A letterbox that is mostly padding is never made: 65,500 x 1 pixels would make 4.3 billion."""

    def test_a_line_of_white_pixels_is_averaged_over_its_cell_and_takes_no_more_memory_than_itself(self):
        picture = np.full((65_500, 1, 3), 255, np.uint8)
        spec = spec_of(224, 224, fit=Fit.LETTERBOX)
        (tile,) = tiles.windows((65_500, 1), spec)
        assert (tile.left_px, tile.width_px) == (-32_749, 65_500)
        tracemalloc.start()
        window = tiles.cut_pixels(picture, tile, spec)
        lying = tiles.cut_pixels(picture.swapaxes(0, 1), *tiles.windows((1, 65_500), spec), spec)
        stitched = tiles.stitch([window[..., 0].astype(np.float32)], [tile], (65_500, 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # A cell is 65,500 / 224 = 292.4 pixels wide, the line one: 255 / 292.4 = 0.87, in the cell 32,749 / 292.4.
        assert (window[:, 111] == 1).all()
        assert window.sum() == 3 * 224
        assert np.array_equal(lying, window.swapaxes(0, 1))
        # Half way between the cells 111 (at 32,603) and 112 (at 32,896): 0.5 and a little.
        np.testing.assert_allclose(stitched, 0.5, atol=0.003)
        assert peak < 40 << 20

    @pytest.mark.parametrize(("size", "channels"), [((5003, 250), 3), ((250, 5003), 1)])
    def test_it_is_that_of_the_whole_letterbox_but_for_rounding(self, rng, size: tuple[int, int], channels: int):
        picture = rng.integers(0, 256, (*size, channels), np.uint8)
        spec = spec_of(64, 80, fit=Fit.LETTERBOX, pad_color=(9, 200, 77)[:channels])
        (tile,) = tiles.windows(size, spec)
        assert tile.height_px * tile.width_px > 1 << 24
        whole = np.empty((tile.height_px, tile.width_px, channels), np.uint8)
        whole[:] = spec.pad_color
        whole[-tile.top_px :, -tile.left_px :][: size[0], : size[1]] = picture
        expected = cv2.resize(whole, (80, 64), interpolation=cv2.INTER_AREA).reshape(64, 80, channels)
        found = tiles.cut_pixels(picture, tile, spec)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found != expected).mean() < 1e-3

    @pytest.mark.parametrize("fit", [Fit.STRETCH, Fit.LETTERBOX])
    def test_a_large_window_is_laid_back_block_by_block(self, rng, fit: Fit):
        size = (1500, 2600)
        found, (tile,) = rng.random((20, 20)).astype(np.float32), tiles.windows(size, spec_of(20, 20, fit=fit))
        whole = sise.upsample(found, (tile.height_px, tile.width_px))
        expected = whole[-tile.top_px :, -tile.left_px :][: size[0], : size[1]]
        np.testing.assert_allclose(tiles.stitch([found], [tile], size), expected, rtol=1e-7)


class TestStitch:
    def test_neighbors_fade_into_each_other_linearly(self):
        maps = [np.full((1, 4), value, dtype=np.float32) for value in (0, 3)]
        stitched = tiles.stitch(maps, [Tile(0, 0, 0, 1, 4), Tile(1, 0, 2, 1, 4)], (1, 6))
        assert stitched.tolist() == [[0, 0, 1, 2, 3, 3]]

    def test_pixels_of_no_given_window_are_zero(self):
        stitched = tiles.stitch([np.ones((2, 2), dtype=np.float32)], [Tile(5, 1, 1, 2, 2)], (4, 4))
        assert stitched.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
        assert not tiles.stitch([], [], (3, 3)).any()

    def test_what_reaches_past_the_picture_is_dropped(self):
        window = np.arange(16, dtype=np.float32).reshape(4, 4)
        assert tiles.stitch([window], [Tile(0, -1, -1, 4, 4)], (2, 2)).tolist() == [[5, 6], [9, 10]]

    def test_a_map_of_another_size_is_resized_to_its_window(self):
        stitched = tiles.stitch([np.array([[0, 4]], dtype=np.float32)], [Tile(0, 0, 0, 1, 4)], (1, 4))
        assert stitched.tolist() == [[0, 1, 3, 4]]

    @pytest.mark.parametrize("size", [(224, 224), (1, 1), (37, 401)])
    def test_one_window_over_the_picture_comes_back_bit_for_bit(self, rng, size: tuple[int, int]):
        window = (rng.random(size) * 10.0 ** rng.integers(-30, 30, size)).astype(np.float32)
        stitched = tiles.stitch([window], [Tile(0, 0, 0, *size)], size)
        assert stitched.dtype == np.float32
        assert np.array_equal(stitched, window)

    @few
    @given(sides, sides, st.integers(1, 20), st.integers(1, 20), st.sampled_from(COVERING), st.floats(0, 1, width=32))
    def test_a_constant_stays_that_constant(self, h: int, w: int, height: int, width: int, fit: Fit, value: float):
        spec = spec_of(height, width, fit=fit)
        found = tiles.windows((h, w), spec)
        stitched = tiles.stitch([np.full((height, width), value, dtype=np.float32)] * len(found), found, (h, w))
        np.testing.assert_allclose(stitched, np.full((h, w), value), rtol=1e-6)

    @few
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
    def test_cutting_then_stitching_gives_the_picture_back(self, h: int, w: int, height: int, width: int):
        picture = np.random.default_rng(h * w).integers(0, 256, (h, w, 1), dtype=np.uint8)
        spec = spec_of(height, width)
        found = tiles.windows((h, w), spec)
        stitched = tiles.stitch([tiles.cut(picture, tile, spec)[..., 0] for tile in found], found, (h, w))
        assert np.array_equal(stitched, picture[..., 0])

    def test_a_peak_in_a_letterbox_lands_where_it_was(self):
        spec = spec_of(20, 20, fit=Fit.LETTERBOX)
        picture = np.zeros((40, 80, 1), dtype=np.uint8)
        picture[8:12, 60:64] = 255
        (tile,) = tiles.windows((40, 80), spec)
        stitched = tiles.stitch([tiles.cut(picture, tile, spec)[..., 0]], [tile], (40, 80))
        row, column = np.unravel_index(stitched.argmax(), stitched.shape)
        assert 8 <= row < 12
        assert 60 <= column < 64
        center = (stitched.sum(axis=1) @ np.arange(40), stitched.sum(axis=0) @ np.arange(80)) / stitched.sum()
        assert center == pytest.approx((9.5, 61.5), abs=1e-6)


def test_windows_of_a_large_picture_are_laid_back_as_those_of_a_small_one() -> None:
    spec, size = InputSpec(64, 64), (1700, 2500)  # blended in bands of some 840 rows
    rng = np.random.default_rng(5)
    placed = [tile for tile in tiles.windows(size, spec) if tile.index % 3 != 1]
    maps = [rng.random((64, 64), np.float32) for _ in placed]
    found = tiles.stitch(maps, placed, size)
    total, weight = np.zeros(size), np.zeros(size)
    ramp = np.minimum(np.arange(1, 65), np.arange(64, 0, -1)).astype(float)
    for tile_map, tile in zip(maps, placed, strict=True):
        where = np.s_[tile.top_px : tile.top_px + 64, tile.left_px : tile.left_px + 64]
        total[where] += tile_map * np.outer(ramp, ramp)
        weight[where] += np.outer(ramp, ramp)
    expected = np.divide(total, weight, out=np.zeros(size), where=weight > 0).astype(np.float32)
    assert np.array_equal(found, expected)
    assert (expected == 0).any()
