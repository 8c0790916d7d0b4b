"""Encoded maps: every bit, or within the bound that is promised; small; and never decoded from changed bytes."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.support import stored
from inspect_xai.errors import StoreError
from inspect_xai.storage import map_codec
from inspect_xai.storage.map_codec import Precision, decode, encode

HALF_STEPS = {Precision.STEPS16: 131_070, Precision.STEPS13: 16_382, Precision.STEPS12: 8_190}
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([np.float32, np.float16, np.uint16]).flatmap(lambda kind: arrays.arrays(kind, SHAPES)))
def test_exact_gives_back_every_bit(array: np.ndarray) -> None:
    came = decode(encode(array).data)
    assert (came.dtype, came.shape) == (array.dtype, array.shape)
    assert came.tobytes() == array.tobytes()  # bytes, so that the payload of a NaN counts too


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from(list(HALF_STEPS)),
)
def test_steps_keep_the_promised_bound(array: np.ndarray, precision: Precision) -> None:
    came = decode(encode(array, precision=precision).data)
    assert (came.dtype, came.shape) == (np.float32, array.shape)
    if array.size:
        exact = array.astype(np.float64)
        rounding = np.spacing(np.abs(array).max())  # the answer is float32 again
        assert np.abs(came - exact).max() <= np.ptp(exact) / HALF_STEPS[precision] * 1.0001 + rounding
        assert came.min() == array.min()


def test_by_hand() -> None:
    blob = encode(np.array([[0, 1], [2, 65535]], np.uint16))
    assert blob.data[:8] == b"IXM1\x02\x00" + blob.data[6:7] + b"\x02"
    assert struct.unpack_from("<2I", blob.data, 8) == (2, 2)
    assert (blob.codec, blob.dtype, blob.shape, blob.precision) == ("ixm1", "uint16", (2, 2), Precision.EXACT)
    assert decode(encode(np.array([0, 1, 3], np.float32), precision=Precision.STEPS16).data).tolist() == [0, 1, 3]
    constant = np.full((2, 2), 0.1, np.float32)
    assert np.array_equal(decode(encode(constant, precision=Precision.STEPS16).data), constant)


def test_zeros_of_another_shape_are_another_blob() -> None:
    assert encode(np.zeros((2, 8), np.float32)).sha256 != encode(np.zeros((4, 4), np.float32)).sha256


def test_a_transposed_array_is_stored_as_it_reads(rng: np.random.Generator) -> None:
    array = rng.random((5, 7)).astype(np.float32).T
    assert np.array_equal(decode(encode(array).data), array)


def cascade(sums: list[np.ndarray]) -> np.ndarray:
    """A fused map of 224 x 224 as the method makes it, but with a quantile in the place of Otsu's threshold."""
    maps = [cv2.resize(each, (224, 224), interpolation=cv2.INTER_LINEAR) for each in sums]
    maps = [(each - each.min()) / np.ptp(each) for each in maps]
    fused = maps[0]
    for each in maps[1:]:
        fused = (fused + each) * (each > np.quantile(each, 0.6))
    return fused


def test_an_explanation_of_five_blocks_takes_at_most_40_kb(rng: np.random.Generator) -> None:
    sizes = []
    for _ in range(8):
        sums = [stored.smooth(rng, edge) for edge in (112, 56, 28, 14, 7)]
        packed = [encode(cascade(sums), precision=Precision.STEPS12)]
        packed += [encode(each, precision=Precision.STEPS12) for each in sums]
        sizes.append(sum(len(each.data) for each in packed))
    assert max(sizes) <= 40_000, sizes


def test_a_block_map_rebuilt_from_stored_sums_is_off_by_at_most_the_bound(rng: np.random.Generator) -> None:
    for edge in (112, 28, 7):
        sums = stored.smooth(rng, edge)
        came = decode(encode(sums, precision=Precision.STEPS12).data)
        was, is_now = (cv2.resize(each, (224, 224), interpolation=cv2.INTER_LINEAR) for each in (sums, came))
        was, is_now = ((each - each.min()) / np.ptp(each) for each in (was, is_now))
        assert np.abs(was - is_now).max() <= 2e-4


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(3, np.int32), np.zeros(3, bool)])
def test_other_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(StoreError, match="a map of type"):
        encode(array)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_steps_want_finite_numbers(value: float) -> None:
    with pytest.raises(StoreError, match="finite float32"):
        encode(np.array([0, value], np.float32), precision=Precision.STEPS16)


def test_a_changed_byte_is_found() -> None:
    blob = encode(np.arange(64, dtype=np.uint16))
    changed = bytearray(blob.data)
    changed[-1] ^= 1
    with pytest.raises(StoreError, match="was changed"):
        decode(bytes(changed), sha256=blob.sha256)
    assert decode(blob.data, sha256=blob.sha256).shape == (64,)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_bytes_never_decode_to_something_else_than_an_error_or_a_map(data: st.DataObject) -> None:
    whole = bytearray(encode(np.arange(12, dtype=np.float32).reshape(3, 4), precision=Precision.STEPS12).data)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        came = decode(bytes(whole[:cut]))
    except StoreError:
        return
    assert came.nbytes <= 64 * 12  # a false header may not claim more than the packed bytes hold


@pytest.mark.parametrize(("offset", "value"), [(16, 0.0), (24, 1e300), (24, float("nan")), (16, float("inf"))])
def test_a_range_that_no_map_has_is_refused(offset: int, value: float) -> None:
    blob = bytearray(encode(np.arange(12, dtype=np.float32).reshape(3, 4), precision=Precision.STEPS12).data)
    struct.pack_into("<d", blob, offset, value)
    if value == 0:  # the smallest value is 0 already: a sound header
        assert decode(bytes(blob)).max() == 11
        return
    with pytest.raises(StoreError, match="hold no map"):
        decode(bytes(blob))


def test_a_header_that_claims_gigabytes_is_refused() -> None:
    blob = bytearray(encode(np.zeros((4, 4), np.float32)).data)
    struct.pack_into("<2I", blob, 8, 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(StoreError, match="hold no map"):
        decode(bytes(blob))


@pytest.mark.parametrize("precision", [Precision.STEPS12, Precision.EXACT])
def test_a_large_map_is_packed_in_bands_to_the_bytes_of_the_whole(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.cumsum(np.random.default_rng(5).normal(size=(301, 257)), axis=1).astype(np.float32)
    whole = encode(found, precision=precision)
    monkeypatch.setattr(map_codec, "_CHUNK_VALUES", 257 * 7)

    assert encode(found, precision=precision).data == whole.data
