"""Decoders: the right values of every form of file, and each damage that a decoder warns of refused in its words."""

import io
import itertools
import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from inspect_xai.errors import PictureError
from inspect_xai.intake import decode
from inspect_xai.intake.decode import picture_size
from inspect_xai.records import PictureLimits
from tests.support import hostile
from tests.support.hostile import png_chunk, tiff_with

decode_picture = partial(decode.decode_picture, limits=PictureLimits())

TURNED = PictureLimits(honour_exif=True)


def scene(height: int = 64, width: int = 96, *, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colors with a little noise (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def tiff(pixels: NDArray[np.generic], **options: object) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, pixels, **options)
    return data.getvalue()


def with_opencv(data: bytes) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def scaled(values: NDArray[np.uint16], white: int) -> NDArray[np.uint8]:
    return np.floor(values.astype(float) * 255 / white + 0.5).astype(np.uint8)


SCENE = scene()
GRAY = SCENE[..., 0]
DEEP = GRAY.astype(np.uint16) * 257
PICTURE = Image.fromarray(SCENE)


# --- JPEG


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
def test_sound_jpegs_keep_opencv_s_pixels_bit_by_bit(subsampling: str, options: dict[str, object]) -> None:
    for index, (height, width) in enumerate([(64, 96), (33, 47), (8, 9), (101, 17)]):
        for quality in (30, 75, 90):
            image = Image.fromarray(scene(height, width, seed=index))
            data = saved(image, "JPEG", quality=quality, subsampling=subsampling, **options)
            assert np.array_equal(decode_picture(data), with_opencv(data))


def _ycck() -> bytes:
    data = saved(PICTURE.convert("CMYK"), "JPEG")
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1 :]


@pytest.mark.parametrize(
    "data",
    [
        saved(PICTURE.convert("L"), "JPEG"),
        saved(PICTURE, "JPEG", keep_rgb=True),
        saved(PICTURE.convert("CMYK"), "JPEG"),
        _ycck(),
        cv2.imencode(".jpg", SCENE, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440])[
            1
        ].tobytes(),
    ],
    ids=["gray", "RGB", "CMYK", "YCCK", "4:4:0"],
)
def test_other_colors_of_jpeg_keep_opencv_s_pixels_bit_by_bit(data: bytes) -> None:
    assert np.array_equal(decode_picture(data), with_opencv(data))


JPEGS = {
    "baseline": saved(PICTURE, "JPEG", quality=90),
    "gray": saved(PICTURE.convert("L"), "JPEG", quality=90),
    "progressive": saved(PICTURE, "JPEG", quality=90, progressive=True),
    "restart markers": saved(PICTURE, "JPEG", quality=90, restart_marker_blocks=2),
}


@pytest.mark.parametrize("form", JPEGS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_a_jpeg_cut_short_with_an_end_marker_is_refused(form: str, share: float) -> None:
    data = JPEGS[form]
    scan = data.find(b"\xff\xda") + 12
    cut = data[: scan + int((len(data) - scan) * share)]
    with pytest.raises(PictureError, match=r"the JPEG file is damaged: Corrupt JPEG data|cut short"):
        decode_picture(cut + b"\xff\xd9")
    with pytest.raises(PictureError, match="cut short: no end marker"):
        decode_picture(cut)


def test_a_progressive_jpeg_cut_between_two_scans_is_refused() -> None:
    data = JPEGS["progressive"]
    starts = [match.start() for match in re.finditer(rb"(\xff\xc4..[^\xff]*)?\xff\xda", data, re.DOTALL)]
    assert len(starts) == 10
    for start in starts[1:]:
        whole_scans = data[:start] + b"\xff\xd9"
        assert with_opencv(whole_scans).shape == SCENE.shape  # no decoder says a word
        with pytest.raises(PictureError, match=r"cut short: its \d scans leave [123] of 3 color components incomplete"):
            decode_picture(whole_scans)


def test_a_jpeg_with_a_scan_for_each_component_needs_all_of_them() -> None:
    planes = [saved(Image.fromarray(SCENE[..., channel]), "JPEG", quality=90) for channel in range(3)]
    frame, scan = planes[0].find(b"\xff\xc0"), planes[0].find(b"\xff\xda")
    components = b"\0\x11\x08" + planes[0][frame + 5 : frame + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0"
    tables = planes[0][frame + 13 : scan]
    scans = [
        b"\xff\xda\0\x08\1%c\0\0\x3f\0" % (number + 1) + plane[scan + 10 : -2] for number, plane in enumerate(planes)
    ]
    head = planes[0][:frame] + b"\xff\xc0" + components + tables
    whole = head + b"".join(scans) + b"\xff\xd9"
    assert np.array_equal(decode_picture(whole), with_opencv(whole))
    for count, left in ((1, 2), (2, 1)):
        with pytest.raises(PictureError, match=f"its {count} scans leave {left} of 3 color components incomplete"):
            decode_picture(head + b"".join(scans[:count]) + b"\xff\xd9")


@pytest.mark.parametrize("form", JPEGS)
def test_a_jpeg_with_a_hole_is_refused(form: str) -> None:
    data = JPEGS[form]
    scan = data.find(b"\xff\xda") + 12
    size = len(data) - scan
    with pytest.raises(PictureError, match="damaged"):
        decode_picture(data[: scan + size * 3 // 10] + data[scan + size * 6 // 10 :])


def test_a_lost_restart_interval_is_refused_wherever_it_was() -> None:
    data = JPEGS["restart markers"]
    places = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    assert len(places) == 11
    for first, second in itertools.pairwise(places):
        with pytest.raises(PictureError, match=r"damaged: Corrupt JPEG data: found marker 0xd\d instead of RST\d"):
            decode_picture(data[:first] + data[second:])


def test_flipped_bytes_are_refused_where_the_decoder_warns_and_only_there() -> None:
    """What the decoder does not complain of nobody can see: docs/guides/line.md says so, and this counts it."""
    data, rng, refused = JPEGS["progressive"], np.random.default_rng(0), 0
    scan = data.find(b"\xff\xda") + 12
    for _ in range(100):
        flipped, at = bytearray(data), int(rng.integers(scan, len(data) - 2))
        flipped[at] ^= int(rng.integers(1, 256))
        try:
            decode_picture(bytes(flipped))
        except PictureError:
            refused += 1
    assert 30 <= refused <= 90


def test_threads_side_by_side_never_take_each_other_s_warning() -> None:
    sound, broken = JPEGS["baseline"], hostile.lost_half(JPEGS["baseline"])
    right = decode_picture(sound)

    def refused(data: bytes) -> bool:
        try:
            return not np.array_equal(decode_picture(data), right)
        except PictureError:
            return True

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(refused, [sound, broken] * 200)) == [False, True] * 200


def _header_ends(data: bytes) -> list[int]:
    offset, ends = 2, []
    while data[offset + 1] != 0xDA:
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        ends.append(offset)
    return ends


def test_stray_and_fill_bytes_between_segments_change_nothing() -> None:
    data = JPEGS["baseline"]
    for at in _header_ends(data):
        for between in (b"\0", b"\0\0", b"\xff\xff", b"\0\xff\0", b"\xff" * 60_000):
            assert np.array_equal(decode_picture(data[:at] + between + data[at:]), decode_picture(data))


def test_a_lost_segment_marker_is_no_stray_byte() -> None:
    """Without an Adobe marker some files would be shown in wrong colors."""
    data = hostile.JPEG[:20] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + hostile.JPEG[20:]
    assert np.array_equal(decode_picture(data), decode_picture(hostile.JPEG))
    with pytest.raises(PictureError, match="16 stray bytes at byte 20, where a marker must stand"):
        decode_picture(data[:20] + b"\0" + data[21:])


def test_an_empty_scan_is_allowed_and_hundreds_are_not() -> None:
    data = saved(Image.new("L", (4_000, 4_000), 128), "JPEG", progressive=True, quality=50)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    bomb = data[:-2] + data[last:-2] * 800 + b"\xff\xd9"
    before = time.process_time()
    with pytest.raises(PictureError, match="more than 100 scans") as refused:
        decode_picture(bomb)
    assert time.process_time() - before < 1  # 12 s to decode
    assert refused.value.expected
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (JPEGS["baseline"][:20] + b"\xff" * 2_000_000 + JPEGS["baseline"][20:], "2000000 fill bytes"),
        (JPEGS["baseline"][:2] + b"\xff\xfe\0\2" * 20_000 + JPEGS["baseline"][2:], "more than 10000 segments"),
        (hostile.PNG[:33] + png_chunk(b"tEXt", b"") * 200_000 + hostile.PNG[33:], "more than 12350 chunks"),
    ],
    ids=["fill bytes", "segments", "chunks"],
)
def test_small_files_of_endless_structure_are_refused_at_once(data: bytes, words: str) -> None:
    before = time.process_time()
    with pytest.raises(PictureError, match=words) as refused:
        decode_picture(data)
    assert time.process_time() - before < 0.5
    assert refused.value.expected
    assert refused.value.remedy


# --- PNG


def _png(image: Image.Image, **options: object) -> bytes:
    return saved(image, "PNG", **options)


@pytest.mark.parametrize(
    "data",
    [
        _png(PICTURE),
        _png(PICTURE.convert("RGBA")),
        _png(PICTURE.convert("L")),
        _png(PICTURE.convert("LA")),
        _png(PICTURE.convert("1")),
        _png(PICTURE.quantize(200), transparency=3),
        _png(PICTURE.quantize(9), bits=4),
        _png(PICTURE.convert("L").quantize(16)),
        _png(PICTURE.convert("L"), transparency=100),
    ],
    ids=["RGB", "RGBA", "gray", "gray alpha", "1 bit", "palette", "4 bit", "gray palette", "transparent gray"],
)
def test_png_keeps_opencv_s_pixels_bit_by_bit(data: bytes) -> None:
    assert np.array_equal(decode_picture(data), with_opencv(data))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_keeps_both_bytes(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4_096, (40, 60, channels)).astype(np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    shown = decode_picture(data, limits=PictureLimits(white_level=4_095))
    right = scaled(values, 4_095)
    assert np.array_equal(shown, right[..., 0] if channels == 1 else right[..., 2::-1])


@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_no_byte_of_a_png_changes_unseen(at: int, by: int) -> None:
    flipped = bytearray(hostile.PNG)
    flipped[at % len(flipped)] ^= by
    with pytest.raises(PictureError):
        decode_picture(bytes(flipped))


def _with_stream(raw: bytes, *, bits: int = 8, height: int = 40) -> bytes:
    header = struct.pack(">IIBBBBB", 60, height, bits, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("bits", [8, 16])
def test_fewer_rows_than_the_header_says_are_refused_whatever_the_checksums(bits: int) -> None:
    row = 1 + 60 * bits // 8
    assert not decode_picture(_with_stream(bytes(40 * row), bits=bits)).any()
    with pytest.raises(PictureError, match="do not decode"):
        decode_picture(_with_stream(bytes(20 * row), bits=bits))


@pytest.mark.parametrize("bits", [8, 16])
def test_what_inflates_behind_the_last_row_is_refused_at_once(bits: int) -> None:
    bomb = _with_stream(bytes(30_000_000), bits=bits)
    before = time.process_time()
    with pytest.raises(PictureError, match="its stream goes on behind the last row"):
        decode_picture(bomb)
    assert time.process_time() - before < 0.1


def test_text_and_profiles_are_never_inflated() -> None:
    packed = zlib.compress(bytes(20_000_000))
    chunks = b"".join(png_chunk(kind, b"x\0\0" + packed) for kind in (b"zTXt", b"iCCP"))
    chunks += png_chunk(b"iTXt", b"x\0\1\0\0\0" + packed)
    before = time.process_time()
    pixels = decode_picture(hostile.PNG[:33] + chunks * 10 + hostile.PNG[33:])
    assert time.process_time() - before < 0.3  # 2 s to inflate
    assert np.array_equal(pixels, hostile.surface())


def test_a_color_outside_the_palette_is_refused() -> None:
    chunks = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 3, 0, 0, 0)) + png_chunk(b"PLTE", bytes(range(9)))
    for color, words in ((2, None), (3, "color 3 of a palette of 3")):
        stream = png_chunk(b"IDAT", zlib.compress((b"\0" + bytes([color]) * 60) * 40))
        data = b"\x89PNG\r\n\x1a\n" + chunks + stream + png_chunk(b"IEND", b"")
        if words is None:
            assert decode_picture(data)[0, 0].tolist() == [6, 7, 8]
        else:
            with pytest.raises(PictureError, match=words):
                decode_picture(data)


# --- TIFF


def _raw_tiff(pixels: bytes, *, bits: int = 8, **tags: int) -> bytes:
    numbers = {256: 96, 257: 64, 258: bits, 259: 1, 262: 1, 277: 1, 278: 64} | {int(k[1:]): v for k, v in tags.items()}
    numbers |= {273: 8 + 2 + 12 * (len(numbers) + 2) + 4, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(numbers.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(numbers)) + entries + bytes(4) + pixels


def _bits(values: NDArray[np.integer], bits: int) -> bytes:
    """Samples of any number of bits, packed row by row, the highest bit first."""
    ones = (values[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(ones.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()


ALPHA = np.dstack([SCENE, GRAY])
TWELVE = np.random.default_rng(1).integers(0, 4_096, (64, 96)).astype(np.uint16)
FOUR = TWELVE >> 8
ONE = np.asarray(PICTURE.convert("1"))
TURNED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
TIFFS: dict[str, tuple[bytes, NDArray[np.generic]]] = {
    "gray": (tiff(GRAY), GRAY),
    "gray white is zero": (tiff(255 - GRAY, photometric="miniswhite"), GRAY),
    "16 bit": (tiff(DEEP), GRAY),
    "16 bit white is zero": (tiff(65_535 - DEEP, photometric="miniswhite"), GRAY),
    "16 bit white is zero, tiles": (tiff(65_535 - DEEP, photometric="miniswhite", tile=(16, 16)), GRAY),
    "16 bit big endian": (tiff(DEEP, byteorder=">"), GRAY),
    "RGB": (tiff(SCENE, photometric="rgb"), SCENE),
    "16 bit RGB": (tiff(SCENE.astype(np.uint16) * 257, photometric="rgb"), SCENE),
    "BigTIFF": (tiff(SCENE, photometric="rgb", bigtiff=True), SCENE),
    "planes": (tiff(np.moveaxis(SCENE, -1, 0), planarconfig="separate", photometric="rgb"), SCENE),
    "16 bit planes": (
        tiff(np.moveaxis(SCENE, -1, 0).astype(np.uint16) * 257, planarconfig="separate", photometric="rgb"),
        SCENE,
    ),
    "tiles 16 x 16": (tiff(SCENE, tile=(16, 16), photometric="rgb"), SCENE),
    "tiles 16 x 48": (tiff(GRAY, tile=(16, 48)), GRAY),
    "tiles beyond the edge": (tiff(GRAY, tile=(256, 256)), GRAY),
    "strips of 7 rows": (tiff(SCENE, rowsperstrip=7, photometric="rgb"), SCENE),
    "tiles, deflate": (tiff(SCENE, tile=(32, 32), photometric="rgb", compression="zlib", predictor=2), SCENE),
    "16 bit, deflate, predictor": (tiff(DEEP, compression="zlib", predictor=2), GRAY),
    "alpha": (tiff(ALPHA, photometric="rgb", extrasamples=["unassalpha"]), SCENE),
    "two extra samples": (tiff(np.dstack([ALPHA, GRAY]), photometric="rgb", extrasamples=["unspecified"] * 2), SCENE),
    "gray and alpha": (
        tiff(
            np.dstack([GRAY, GRAY // 2]), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"
        ),
        GRAY,
    ),
    "12 bit": (_raw_tiff(_bits(TWELVE, 12), bits=12), scaled(TWELVE, 4_095)),
    "12 bit white is zero": (_raw_tiff(_bits(4_095 - TWELVE, 12), bits=12, t262=0), scaled(TWELVE, 4_095)),
    "10 bit": (_raw_tiff(_bits(TWELVE >> 2, 10), bits=10), scaled(TWELVE >> 2, 1_023)),
    "4 bit": (_raw_tiff(_bits(FOUR, 4), bits=4), FOUR * 17),
    "1 bit": (tiff(ONE, photometric="minisblack"), ONE * 255),
    "1 bit white is zero": (tiff(~ONE, photometric="miniswhite"), ONE * 255),
    "turned bits": (_raw_tiff(GRAY.tobytes().translate(TURNED_BITS), t266=2), GRAY),
    "LZW": (saved(PICTURE, "TIFF", compression="tiff_lzw"), SCENE),
    "16 bit LZW": (saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"), GRAY),
    "PackBits": (saved(PICTURE.convert("L"), "TIFF", compression="packbits"), np.asarray(PICTURE.convert("L"))),
    "fax group 4": (saved(Image.fromarray(ONE), "TIFF", compression="group4"), ONE * 255),
    "fax group 3": (saved(Image.fromarray(ONE), "TIFF", compression="group3"), ONE * 255),
    "palette": (saved(PICTURE.quantize(200), "TIFF"), np.asarray(PICTURE.quantize(200).convert("RGB"))),
    "first of two pages": (saved(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), SCENE),
}


@pytest.mark.parametrize("form", TIFFS)
def test_a_tiff_s_tags_are_honoured(form: str) -> None:
    data, right = TIFFS[form]
    assert picture_size(data) == (64, 96)
    pixels = decode_picture(data)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, right)


@pytest.mark.parametrize("image", [PICTURE, PICTURE.convert("L")], ids=["color", "gray"])
def test_jpeg_inside_tiff_keeps_opencv_s_pixels_and_is_heard(image: Image.Image) -> None:
    data = saved(image, "TIFF", compression="jpeg", quality=90)
    assert np.array_equal(decode_picture(data), with_opencv(data))
    strip = data.index(b"\xff\xda", data.index(b"\xff\xc0")) + 200
    with pytest.raises(PictureError, match="the JPEG file is damaged"):
        decode_picture(data[:strip] + b"\xff\xd9" + data[strip + 2 :])


def test_cmyk_tiff_keeps_opencv_s_pixels() -> None:
    data = saved(PICTURE.convert("CMYK"), "TIFF")
    assert np.array_equal(decode_picture(data), with_opencv(data))


def test_a_dark_camera_s_white_level_holds_for_white_is_zero_and_for_12_bits() -> None:
    limits = PictureLimits(white_level=4_095)
    right = scaled(TWELVE, 4_095)
    assert np.array_equal(decode_picture(tiff(TWELVE), limits=limits), right)
    assert np.array_equal(decode_picture(tiff(4_095 - TWELVE, photometric="miniswhite"), limits=limits), right)
    assert np.array_equal(decode_picture(_raw_tiff(_bits(TWELVE, 12), bits=12), limits=limits), right)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(GRAY.astype(np.int8)), "type int8"),
        (tiff(GRAY.astype(np.float16)), "type float16"),
        (tiff(GRAY.astype(np.uint32)), "32 bits"),
        (tiff_with(tiff(GRAY), 262, 8), "photometric interpretation 8"),
        (tiff_with(tiff(GRAY), 262, 6), "16 bits|1 samples|8 bits|YCbCr"),
        (tiff_with(tiff(GRAY), 259, 34_712), "compression 34712"),
        (_raw_tiff(GRAY.tobytes(), t254=1), "thumbnail"),
        (_raw_tiff(GRAY.tobytes(), t322=0, t323=16), "tiles of 0 x 16"),
        (_raw_tiff(GRAY.tobytes(), t322=1 << 30, t323=1 << 30, t324=8, t325=6_144), "tiles cover"),
        (_raw_tiff(GRAY.tobytes(), t278=32), "names 1 strips or tiles, its size asks for 2"),
        (_raw_tiff(GRAY.tobytes()[:3_000]), "holds 3000 bytes of 6144: cut short"),
        (_raw_tiff(GRAY.tobytes())[:-1], "behind the end of the file: cut short"),
        (_raw_tiff(GRAY.tobytes(), t317=3), "predictor 3"),
        (_raw_tiff(bytes(16), t256=8, t257=12_000_000, t278=1), "names 1 strips or tiles, its size asks for 12000000"),
        (
            _raw_tiff(bytes(96 * 64 * 9), t277=9),
            "9 samples a pixel, which is not read. Expected 1 or more, of at most 64 bits",
        ),
        (hostile.tiff_of_two_sizes(18_000, 64), "tag 256 twice"),
        (hostile.tiff_of_two_sizes(64, 18_000), "tag 256 twice"),
    ],
)
def test_a_tiff_that_asks_for_what_is_not_read_says_so(data: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        decode_picture(data)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_a_compressed_tiff_that_lost_bytes_is_refused(compression: str) -> None:
    image = PICTURE.quantize(8).convert("L") if compression == "packbits" else PICTURE
    data = saved(image, "TIFF", compression=compression)
    half = len(data) // 2
    refused = 0
    for at in range(half - 200, half + 200, 40):
        try:
            decode_picture(data[:at] + bytes(30) + data[at + 30 :])
        except PictureError:
            refused += 1
    assert refused >= 9, refused


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_code_that_libtiff_cannot_read_is_refused_although_it_goes_on(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, complaints = saved(Image.fromarray(ONE), "TIFF", compression=compression), 0
    for at in range(8, 8 + 400, 10):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        capfd.readouterr()
        with_opencv(bytes(flipped))
        if "Fax" in capfd.readouterr().err:
            complaints += 1
            with pytest.raises(PictureError, match="fax code"):
                decode_picture(bytes(flipped))
    assert complaints > 30


# --- BMP


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_keeps_its_pixels_and_its_header_must_fit_them(mode: str) -> None:
    data = saved(PICTURE.convert(mode), "BMP")
    pixels = decode_picture(data)
    assert np.array_equal(pixels, np.asarray(PICTURE.convert(mode).convert("RGB" if pixels.ndim == 3 else "L")))
    for at in (10, 14, 18, 22, 28):  # offset of the rows, header's length, width, height, bits
        flipped = bytearray(data)
        flipped[at] ^= 16
        with pytest.raises(PictureError):
            decode_picture(bytes(flipped))


def run_length_bmp(runs: bytes, *, height: int, width: int) -> bytes:
    """A gray BMP of 8 bits whose rows are run-length code."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    size = len(runs)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, size, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + size, 0, 0, 1078) + header + palette + runs


@pytest.mark.parametrize("end", [b"\0\0\0\1", b"\0\1"])
def test_run_length_code_of_a_bmp_must_give_every_pixel(end: bytes) -> None:
    rows = [bytes([5, 10, 0, 3, 20, 30, 40, 0]), *[bytes([8, 50 + row]) for row in range(7)]]  # 5 of one, 3 one by one
    pixels = decode_picture(run_length_bmp(b"\0\0".join(rows) + end, height=8, width=8))
    assert pixels[7].tolist() == [10, 10, 10, 10, 10, 20, 30, 40]
    assert pixels[0].tolist() == [56] * 8
    for cut in (b"\0\0".join(rows[:4]), b"\0\0".join([*rows[:7], b"\3\7"]), b"\0\2\0\1" + b"\0\0".join(rows[1:])):
        with pytest.raises(PictureError, match="its runs leave pixels out"):
            decode_picture(run_length_bmp(cut + end, height=8, width=8))


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_every_orientation_is_honoured_or_left(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = saved(PICTURE, form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        right = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode_picture(data, limits=TURNED), right)
    plain = saved(PICTURE, form)
    assert np.array_equal(decode_picture(data), decode_picture(plain))


def test_an_orientation_that_means_nothing_leaves_the_picture() -> None:
    exif = Image.Exif()
    exif[0x112] = 9
    assert decode_picture(saved(PICTURE, "PNG", exif=exif), limits=TURNED).shape == (64, 96, 3)
