"""The places an explanation map marks, with numbers a person can count."""

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import ExplanationError
from inspect_xai.maths import regions
from inspect_xai.maths.regions import find_regions, marked_pixels
from inspect_xai.records import Region


def test_by_hand():
    fused = np.array([[4, 0, 0, 0, 0], [0, 4, 0, 0, 2], [0, 0, 0, 0, 3], [1, 0, 0, 0, 0]], dtype=np.float32)
    # shares 1, 1, 0.5, 0.75, 0.25: Otsu parts {0.25, 0.5} from {0.75, 1, 1}
    assert find_regions(fused) == (
        Region(0, 0, 2, 2, area_px=2, peak=4.0, mass=8 / 14),  # joined at a corner
        Region(2, 4, 1, 1, area_px=1, peak=3.0, mass=3 / 14),
    )
    assert find_regions(fused, most=1) == find_regions(fused)[:1]


def test_a_map_of_one_value_is_marked_whole():
    fused = np.zeros((3, 4), dtype=np.float32)
    fused[1:, 2:] = 2.5
    assert find_regions(fused) == (Region(1, 2, 2, 2, area_px=4, peak=2.5, mass=1.0),)
    assert marked_pixels(np.ones((2, 2), dtype=np.float32)).all()


def test_a_map_of_zeros_has_no_regions():
    assert find_regions(np.zeros((5, 6), dtype=np.float32)) == ()


def test_peak_is_the_regions_own_where_boxes_overlap():
    fused = np.zeros((5, 5), dtype=np.float32)
    fused[0, :] = fused[:, 0] = 1.0
    fused[2, 2], fused[4, 4] = 1.5, 0.1
    found = find_regions(fused)
    assert [(region.area_px, region.peak) for region in found] == [(9, 1.0), (1, 1.5)]


def test_refuses_nan():
    with pytest.raises(ExplanationError):
        find_regions(np.array([[0, np.nan], [1, 2]], dtype=np.float32))


@settings(max_examples=30, deadline=None)
@given(npst.arrays(np.float32, (8, 9), elements=st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.25, 3.0])))
def test_agrees_with_scikit_image(fused: np.ndarray):
    found = find_regions(fused, most=100)
    labels = skimage.measure.label(marked_pixels(fused), connectivity=2)
    expected = {
        props.bbox: (int(props.num_pixels), float(props.intensity_max), fused[labels == props.label].sum())
        for props in skimage.measure.regionprops(labels, intensity_image=fused)
    }
    assert [region.mass for region in found] == sorted((region.mass for region in found), reverse=True)
    boxes = [(r.top_px, r.left_px, r.top_px + r.height_px, r.left_px + r.width_px) for r in found]
    assert set(boxes) == set(expected)
    if len(expected) == len(found):  # unless two regions share a box
        for box, region in zip(boxes, found, strict=True):
            assert (region.area_px, region.peak, pytest.approx(region.mass * fused.sum())) == expected[box]


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.float32, (24, 30), elements=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.7, 1.3])))
def test_a_map_that_is_split_has_the_same_regions_to_the_last_bit(fused: np.ndarray):
    whole = find_regions(fused, most=1000)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(regions, "_CHUNK_PIXELS", 40)
        patched.setattr(regions, "_GAP_PX", 1)
        assert find_regions(fused, most=1000) == whole
