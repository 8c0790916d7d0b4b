"""Resizing held equal to what the frameworks themselves made (reference/resizing.py), and back onto the picture."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inspect_xai.errors import PictureError
from inspect_xai.maths import tiles
from inspect_xai.records import Fit, InputSpec, Resize, Tile

few = settings(max_examples=30, deadline=None)
SIZES = ("37x45", "33x24", "11x13")


def spec(fit: Fit, how: str, height: int = 15, width: int = 20, **rest: object) -> InputSpec:
    return InputSpec(height, width, fit=fit, resize=Resize(how), **rest)  # type: ignore[arg-type]


STRETCHED = ("nearest", "bilinear", "bicubic", "lanczos")
EQUAL = {
    **{f"torchvision {name}": spec(Fit.STRETCH, name) for name in STRETCHED},
    **{f"keras load_img {name}": spec(Fit.STRETCH, name) for name in STRETCHED},
    **{
        f"torchvision {name} resize 17 crop 15": spec(Fit.CENTER_CROP, name, 15, 15, resize_short=17)
        for name in ("bilinear", "bicubic")
    },
    "tensorflow bilinear": spec(Fit.STRETCH, "tf-bilinear"),
    "keras smart_resize": spec(Fit.CENTER_CROP, "tf-bilinear"),
    "ultralytics letterbox": spec(Fit.LETTERBOX, "opencv-linear", pad_color=(114,)),
    "paddleclas resize 17 crop 15": spec(Fit.CENTER_CROP, "opencv-linear", 15, 15, resize_short=17),
    "opencv linear": spec(Fit.STRETCH, "opencv-linear"),
    "opencv cubic": spec(Fit.STRETCH, "opencv-cubic"),
}
NEAR = {
    "torchvision tensor bilinear": (spec(Fit.STRETCH, "tensor-bilinear"), 2e-4),  # float32 sums in another order
    "torchvision tensor bicubic": (spec(Fit.STRETCH, "tensor-bicubic"), 2e-4),
    "torchvision uint8 tensor bilinear": (spec(Fit.STRETCH, "bilinear"), 1),  # as docs/reference/card.md says
    "torchvision uint8 tensor bicubic": (spec(Fit.STRETCH, "bicubic"), 1),
}


@pytest.fixture(scope="module")
def kept() -> dict[str, NDArray[np.generic]]:
    with np.load(Path(__file__).parents[1] / "reference/resizing.npz") as arrays:
        return dict(arrays)


def cut(picture: NDArray[np.generic], by: InputSpec) -> NDArray[np.float32]:
    pixels = np.asarray(picture, np.uint8)
    (tile,) = tiles.windows((pixels.shape[0], pixels.shape[1]), by)
    return tiles.cut(pixels, tile, by)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EQUAL)
def test_a_window_is_the_frameworks_to_the_bit(kept: dict[str, NDArray[np.generic]], name: str, size: str) -> None:
    assert np.array_equal(cut(kept[size], EQUAL[name]), kept[f"{size} {name}"].astype(np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NEAR)
def test_a_window_is_the_frameworks_to_rounding(kept: dict[str, NDArray[np.generic]], name: str, size: str) -> None:
    by, off = NEAR[name]
    np.testing.assert_allclose(cut(kept[size], by), kept[f"{size} {name}"], rtol=0, atol=off)


def test_every_resize_of_a_card_is_held_to_a_reference() -> None:
    held = {by.resize for by in EQUAL.values()} | {by.resize for by, _ in NEAR.values()}
    assert held == set(Resize) - {Resize.AREA}


@pytest.mark.parametrize("how", [how for how in Resize if how is not Resize.AREA])
def test_a_gray_plane_is_resized_as_three_equal_channels_are(kept: dict[str, NDArray[np.generic]], how: Resize) -> None:
    plane = np.asarray(kept["33x24"], np.uint8)[..., :1]
    by = spec(Fit.CENTER_CROP, how, resize_short=22)
    assert np.array_equal(np.repeat(cut(plane, by), 3, axis=-1), cut(np.repeat(plane, 3, axis=-1), by))


def test_the_window_of_a_center_crop_by_hand() -> None:
    """224 of 256: of 512 x 768 pixels the middle 448 x 448, which begin at row 32 and column 160."""
    assert tiles.windows((512, 768), spec(Fit.CENTER_CROP, "bilinear", 224, 224, resize_short=256)) == (
        Tile(0, 32, 160, 448, 448),
    )
    assert tiles.windows((512, 768), spec(Fit.CENTER_CROP, "bilinear", 224, 224)) == (Tile(0, 0, 128, 512, 512),)
    assert tiles.windows((512, 768), spec(Fit.CENTER_CROP, "area", 100, 300)) == (Tile(0, 128, 0, 256, 768),)


def test_the_window_of_a_padded_picture_by_hand() -> None:
    """480 x 640 in 640 x 640: 80 rows above and below. 333 x 640: 153 above, 154 below, as ultralytics pads."""
    padded = spec(Fit.LETTERBOX, "opencv-linear", 640, 640, pad_color=(114,))
    assert tiles.windows((480, 640), padded) == (Tile(0, -80, 0, 640, 640),)
    assert tiles.windows((333, 640), padded) == (Tile(0, -153, 0, 640, 640),)
    assert tiles.windows((960, 1280), padded) == (Tile(0, -160, 0, 1280, 1280),)


@few
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 20), st.integers(2, 20), st.sampled_from(list(Resize)))
def test_windows_lie_on_the_picture_whatever_its_size(h: int, w: int, height: int, width: int, how: Resize) -> None:
    picture = np.full((h, w, 1), 9, np.uint8)
    for short in (0, max(height, width), 3 * max(height, width)):
        by = spec(Fit.CENTER_CROP, how, height, width, resize_short=short)
        (tile,) = tiles.windows((h, w), by)
        assert 0 <= tile.top_px < tile.top_px + tile.height_px <= h
        assert 0 <= tile.left_px < tile.left_px + tile.width_px <= w
        assert (tiles.cut(picture, tile, by) == np.full((height, width, 1), 9)).all()
    by = spec(Fit.LETTERBOX, how, height, width, pad_color=(9,))
    (tile,) = tiles.windows((h, w), by)
    assert tile.top_px <= 0 < h <= tile.top_px + tile.height_px
    assert tile.left_px <= 0 < w <= tile.left_px + tile.width_px
    assert (tiles.cut(picture, tile, by) == np.full((height, width, 1), 9)).all()


@pytest.mark.parametrize(
    "by",
    [
        spec(Fit.CENTER_CROP, "bilinear", 24, 24, resize_short=32),
        spec(Fit.CENTER_CROP, "opencv-linear", 24, 24, resize_short=32),
        spec(Fit.CENTER_CROP, "tf-bilinear", 24, 24),
        spec(Fit.LETTERBOX, "opencv-linear", 24, 24, pad_color=(0,)),
        spec(Fit.STRETCH, "tensor-bicubic", 24, 24),
    ],
    ids=lambda by: f"{by.fit} {by.resize} {by.resize_short}",
)
def test_a_peak_lands_where_it_was(by: InputSpec) -> None:
    rows, columns = np.mgrid[:60, :90]
    spot = 255 * np.exp(-((rows - 34.5) ** 2 + (columns - 56.5) ** 2) / 2 / 4**2)
    picture = np.rint(spot).astype(np.uint8)[..., np.newaxis]
    (tile,) = tiles.windows((60, 90), by)
    stitched = tiles.stitch([tiles.cut(picture, tile, by)[..., 0]], [tile], (60, 90))
    center = tuple((stitched * places).sum() / stitched.sum() for places in (rows, columns))
    assert center == pytest.approx((34.5, 56.5), abs=0.5)  # windows lie on whole pixels
    outside = np.ones((60, 90), np.bool_)
    top, left = max(0, tile.top_px), max(0, tile.left_px)
    outside[top : tile.top_px + tile.height_px, left : tile.left_px + tile.width_px] = False
    assert not stitched[outside].any()


def test_a_thread_of_a_picture_is_refused_before_it_fills_the_memory() -> None:
    by = spec(Fit.CENTER_CROP, "bilinear", 224, 224, resize_short=256)
    with pytest.raises(PictureError, match=r"1 x 65500 pixels, its shorter side resized to 256"):
        tiles.windows((1, 65500), by)
