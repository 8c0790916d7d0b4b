"""Colors: what is drawn says what the map says, and nothing where it says nothing."""

import numpy as np
import pytest

from inspect_xai.maths.color import color_map, overlay
from inspect_xai.maths.regions import find_regions


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_the_scale_grows_lighter_all_the_way():
    ramp = np.linspace(0, 3, 256, dtype=np.float32)[np.newaxis]
    painted = color_map(ramp)
    assert painted.shape == (1, 256, 3)
    assert painted.dtype == np.uint8
    assert np.all(np.diff(luminance(painted)[0]) > -0.75)  # a gray level of rounding
    assert luminance(painted)[0, 0] < 3
    assert luminance(painted)[0, -1] > 240
    red, _, blue = painted[0, 160].tolist()
    assert red > blue, "channels must be in RGB order: the middle of the scale is orange"


def test_only_the_shape_of_the_map_counts():
    fused = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
    assert np.array_equal(color_map(fused), color_map(fused * 1e-6))
    assert len(np.unique(color_map(np.zeros((2, 2))).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_pixels_without_evidence_stay_as_photographed(rng, shape: tuple[int, ...]):
    picture = rng.integers(0, 256, shape, dtype=np.uint8)
    fused = np.zeros((20, 30), dtype=np.float32)
    fused[5:9, 6:12] = 2.0
    shown = overlay(picture, fused)
    rgb = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
    assert np.array_equal(shown[fused == 0], rgb[fused == 0])
    assert not np.array_equal(shown[fused > 0], rgb[fused > 0])
    assert np.array_equal(overlay(picture, np.zeros((20, 30))), rgb)


def test_opacity_grows_with_the_map():
    picture = np.zeros((1, 3), dtype=np.uint8)
    fused = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
    half, full = overlay(picture, fused, opacity=0.5), overlay(picture, fused, opacity=1.0)
    assert np.array_equal(full[0, 2], color_map(fused)[0, 2])
    assert np.allclose(half[0, 2], color_map(fused)[0, 2] * 0.5, atol=0.5)
    assert np.allclose(half[0, 1], color_map(fused)[0, 1] * 0.25, atol=0.5)


def test_a_region_is_outlined_and_others_are_not():
    picture = np.full((40, 60), 120, dtype=np.uint8)
    fused = np.zeros((40, 60), dtype=np.float32)
    fused[5:15, 5:15], fused[25:35, 40:50] = 1.0, 1.0
    regions = find_regions(fused)
    shown = overlay(picture, fused, regions=regions[:1])
    bare = overlay(picture, fused)
    assert np.all(shown[5, 5:15] == 255)
    assert np.all(shown[4, 5:15] == 0)
    assert np.array_equal(shown[20:, 30:], bare[20:, 30:])
    assert np.array_equal(shown[8:12, 8:12], bare[8:12, 8:12])
