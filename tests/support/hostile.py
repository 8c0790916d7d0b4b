"""Files as a bad day delivers them, made in code: what each is named, what it holds, and what must be said of it."""

import base64
import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image


def surface(seed: int = 0, *, size: tuple[int, int] = (40, 60)) -> NDArray[np.uint8]:
    """Return a gray RGB surface (H, W, 3) that differs by seed."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(90, 160, (*size, 1), np.uint8), 3, axis=2)


def encoded(pixels: NDArray[np.generic], suffix: str = ".png") -> bytes:
    """Return the pixels as a file's bytes; RGB order in."""
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    done, data = cv2.imencode(suffix, np.ascontiguousarray(bgr))
    assert done
    return data.tobytes()


def pillow(mode: str, form: str, **options: object) -> bytes:
    """Return a surface written by another library than the one that reads it."""
    data = io.BytesIO()
    Image.fromarray(surface()).convert(mode).save(data, form, **options)
    return data.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """Return a few bytes whose header asks for any number of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + png_chunk(b"IEND", b"")
    )


def tiff_claiming(width: int, height: int) -> bytes:
    """Return the same as TIFF, little endian, without pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1)]
    return (
        b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + b"\0" * 4
    )


def bmp_claiming(width: int, height: int) -> bytes:
    """Return the same as BMP."""
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def float_tiff() -> bytes:
    """Return a TIFF of floats, one of them not a number."""
    pixels = np.zeros((40, 60), np.float32)
    pixels[3, 4] = np.nan
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "TIFF")
    return data.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff_in_a_circle() -> bytes:
    """Return a TIFF whose directory names itself as the next one."""
    data = bytearray(TIFF)
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * entries, directory)
    return bytes(data)


def lost_half(data: bytes) -> bytes:
    """Return a JPEG whose first scan lost its second half, with the end marker that repair tools put there."""
    scan = data.find(b"\xff\xda")
    return data[: scan + (len(data) - scan) // 2] + b"\xff\xd9"


def without_first_row(data: bytes) -> bytes:
    """Return a JPEG with restart markers that lost what stands between the first two of them."""
    first, second = data.find(b"\xff\xd0"), data.find(b"\xff\xd1")
    return data[:first] + data[second:]


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """Return a little endian TIFF whose tag has another value."""
    changed = bytearray(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            kind = {3: "<H", 4: "<I"}[struct.unpack_from("<H", data, entry + 2)[0]]
            struct.pack_into(kind, changed, entry + 8, value)
            return bytes(changed)
    raise KeyError(tag)


def tiff_of_two_sizes(first: int, second: int) -> bytes:
    """Return a gray TIFF that gives width and height twice; libtiff takes the first, others the last."""
    packed = zlib.compress(bytes(first * first), 9)
    sides = [(256, 4, 1, first), (257, 4, 1, first)]
    rest = [(258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 146), (277, 3, 1, 1), (278, 4, 1, first)]
    entries = [*sides, *rest, (279, 4, 1, len(packed)), (256, 4, 1, second), (257, 4, 1, second)]
    written = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + written + bytes(4) + packed


def small_tiles() -> bytes:
    """Return a TIFF of tiles of 16 x 16 pixels, the smallest the format knows."""
    data = io.BytesIO()
    tifffile.imwrite(data, surface(37), tile=(16, 16), photometric="rgb")
    return data.getvalue()


PNG = encoded(surface())
JPEG = encoded(surface(), ".jpg")
TIFF = encoded(surface(), ".tiff")

# name -> (content, words the recorded reason must hold)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty"),
    "one byte.png": (b"\x89", "begins with"),
    "magic only.png": (PNG[:8], "header"),
    "header only.png": (PNG[:30], "IEND"),
    "half.png": (PNG[: len(PNG) // 2], "cut short"),
    "no end.png": (PNG[:-12], "cut short"),
    "flipped.png": (PNG[:60] + bytes([PNG[60] ^ 0xFF]) + PNG[61:], "checksum"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "cut short"),
    "no end.jpg": (JPEG[:-2], "cut short"),
    "marker only.jpg": (b"\xff\xd8\xff", "header"),
    "no frame.jpg": (b"\xff\xd8\xff\xda\x00\x02", "no frame header"),
    "lost marker.jpg": (b"\xff\xd8\xff\xe0\x00\x04\x00\x00\x00\x00\x00\x00", "marker"),
    "half.tif": (TIFF[: len(TIFF) // 2], "directory"),
    "no directory.tif": (b"II*\0\xff\xff\xff\x7f", "directory"),
    "no size.tif": (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 258, 3, 1, 8) + b"\0" * 4, "size"),
    "odd size.tif": (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 256, 2, 1, 8) + b"\0" * 4, "type 2"),
    "half.bmp": (encoded(surface(), ".bmp")[:2000], "cut short"),
    "wrong magic.png": (b"this is a text, not a picture\n" * 20, "begins with"),
    "gif.png": (pillow("L", "GIF"), "begins with"),
    "page.png": (b"<html><script>alert(1)</script></html>", "begins with"),
    "archive.png": (b"PK\x03\x04" + b"\0" * 100, "begins with"),
    "program.png": (b"\x7fELF" + b"\0" * 100, "begins with"),
    "zeros.png": (bytes(5000), "begins with"),
    "bomb.png": (png_claiming(60_000, 60_000), "60000 x 60000"),
    "widest.png": (png_claiming(2**31 - 1, 2**31 - 1), "pixels"),
    "bomb.tif": (tiff_claiming(2**31, 2**31), "pixels"),
    "bomb.bmp": (bmp_claiming(2**30, -(2**30)), "pixels"),
    "lying.png": (png_claiming(100, 100), "do not decode"),
    "one pixel.png": (encoded(surface(size=(1, 1))), "1 x 1"),
    "thread.png": (encoded(surface(size=(1, 500))), "500 x 1"),
    "nothing.png": (png_claiming(0, 0), "0 x 0"),
    "float.tif": (float_tiff(), "float32"),
    "signed.tif": (encoded(np.full((40, 60), -5, np.int16), ".tiff"), "int16"),
    "all nan.tif": (encoded(np.full((40, 60), np.nan, np.float32), ".tiff"), "float32"),
    "double.tif": (encoded(np.zeros((40, 60), np.float64), ".tiff"), "float64"),
    "32 bit.tif": (pillow("I", "TIFF"), "int32"),
    "header cut.jpg": (JPEG[:200], "cut short"),
    "no scan.jpg": (b"\xff\xd8\xff\xd9", "cut short"),
    "hole.png": (PNG[:200] + bytes(400) + PNG[600:], "checksum"),
    "header damaged.png": (PNG[:29] + bytes([PNG[29] ^ 0xFF]) + PNG[30:], "checksum"),
    "3 bits deep.png": (PNG[:24] + b"\x03" + PNG[25:], "do not decode"),
    "color type 5.png": (PNG[:25] + b"\x05" + PNG[26:], "do not decode"),
    "script first.jpg": (b"\xff\xd8\xff\xfe\x00\x10<script>alert" + JPEG[2:], "marker"),
    "lying.tif": (tiff_claiming(100, 100), "0 strips or tiles"),
    "lying.bmp": (bmp_claiming(100, 100), "100 x 100 pixels of 24 bits take 30000 bytes"),
    "too wide.png": (png_claiming(100_000_000, 8), "pixels"),
    "seven.png": (encoded(surface(size=(7, 7))), "7 x 7"),
    "sent as text.png": (PNG.replace(b"\r\n", b"\n", 1), "begins with"),
    "byte order mark.png": (b"\xef\xbb\xbf" + PNG, "begins with"),
    "base64.png": (base64.b64encode(PNG), "begins with"),
    "gzip.png": (gzip.compress(PNG), "begins with"),
    "webp.png": (pillow("RGB", "WEBP"), "begins with"),
    "animated.png.jpg": (pillow("P", "GIF", save_all=True, append_images=[Image.new("P", (60, 40))]), "begins with"),
    "pdf.jpg": (pillow("RGB", "PDF"), "begins with"),
    "drawing.bmp": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "begins with"),
    "lost half.jpg": (lost_half(JPEG), "premature end of data segment"),
    "lost half progressive.jpg": (lost_half(pillow("RGB", "JPEG", progressive=True)), "damaged"),
    "lost row.jpg": (without_first_row(pillow("RGB", "JPEG", restart_marker_rows=1)), "instead of RST0"),
    "two sizes.tif": (tiff_of_two_sizes(1_000, 64), "tag 256 twice"),
    "jpeg 2000.jpg": (encoded(surface(), ".jp2"), "begins with"),
}

# name -> content: odd, but pictures all the same
SOUND: dict[str, bytes] = {
    "plain.png": encoded(surface(1)),
    "with spaces and (brackets).png": encoded(surface(2)),
    "new\nline.png": encoded(surface(3)),
    "emoji \N{HAMMER} \N{NUT AND BOLT}.png": encoded(surface(4)),
    "-rf.png": encoded(surface(5)),
    "quote'\"; DROP TABLE capture;--.png": encoded(surface(6)),
    "<script>alert(1)<.png": encoded(surface(7)),
    "{{ 7 * 7 }}.png": encoded(surface(8)),
    "%2e%2e%2f..%5cetc.png": encoded(surface(9)),
    "UPPER.PNG": encoded(surface(10)),
    "two.dots.png": encoded(surface(11)),
    "L" * 240 + ".png": encoded(surface(12)),
    "deep/er/and/deeper/still.png": encoded(surface(13)),
    "gray.png": encoded(surface(14)[..., 0]),
    "16 bit.png": encoded(surface(15)[..., 0].astype(np.uint16) * 257),
    "16 bit.tiff": encoded(surface(16)[..., 0].astype(np.uint16) * 257, ".tiff"),
    "cmyk.jpg": pillow("CMYK", "JPEG"),
    "palette.png": pillow("P", "PNG"),
    "bilevel.png": pillow("1", "PNG"),
    "alpha.png": pillow("RGBA", "PNG"),
    "gray alpha.png": pillow("LA", "PNG"),
    "progressive.jpg": pillow("RGB", "JPEG", progressive=True),
    "animated.png": pillow("RGB", "PNG", save_all=True, append_images=[Image.fromarray(surface(17))]),
    "pages.tif": pillow("RGB", "TIFF", save_all=True, append_images=[Image.fromarray(surface(18))]),
    "bitmap.bmp": encoded(surface(19), ".bmp"),
    "a jpeg.png": encoded(surface(20), ".jpg"),
    "polyglot.png": encoded(surface(21)) + b"PK\x03\x04<script>alert(1)</script>",
    "circle.tif": tiff_in_a_circle(),
    "text bomb.png": PNG[:33] + png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(20_000_000))) + PNG[33:],
    "profile bomb.png": PNG[:33] + png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(20_000_000))) + PNG[33:],
    "lzw.tif": pillow("RGB", "TIFF", compression="tiff_lzw"),
    "fax.tif": pillow("1", "TIFF", compression="group4"),
    "jpeg inside.tif": pillow("RGB", "TIFF", compression="jpeg"),
    "cmyk.tif": pillow("CMYK", "TIFF"),
    "big.tif": pillow("RGB", "TIFF", big_tiff=True),
    "two colors.bmp": pillow("1", "BMP"),
    "16 bit color.png": encoded(surface(23).astype(np.uint16) * 257),
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.txt.png": encoded(surface(24)),
    "e\N{COMBINING ACUTE ACCENT}.png": encoded(surface(25)),
    "\N{LATIN SMALL LETTER E WITH ACUTE}.png": encoded(surface(26)),
    " leading and trailing .png": encoded(surface(27)),
    "a" * 40 + ".png.png.png": encoded(surface(28)),
    "stray bytes.jpg": JPEG[:20] + b"\0\0" + JPEG[20:],
    "fill bytes.jpg": JPEG[:20] + b"\xff" * 100 + JPEG[20:],
    "two pictures.jpg": JPEG + JPEG,
    "small tiles.tif": small_tiles(),
    "white is zero.tif": tiff_with(pillow("L", "TIFF"), 262, 0),
    "trailing zeros.jpg": encoded(surface(22), ".jpg") + bytes(512),
}


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    outside.write_bytes(encoded(surface(30)))
    (folder / "link.png").symlink_to(outside)


def _dangling_link(folder: Path) -> None:
    (folder / "dangling.png").symlink_to("/nowhere/at/all.png")


def _link_to_itself(folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")


def _link_to_folder(folder: Path) -> None:
    """Make a link out of the source that is named like a picture and leads to a folder with one."""
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "secret.png").write_bytes(encoded(surface(33)))
    (folder / "folder link.png").symlink_to(folder.parent / "elsewhere")
    (folder / "unnamed link").symlink_to(folder.parent / "elsewhere")  # not looked into at all


def _sparse(folder: Path) -> None:
    """Make a file that claims a terabyte and takes no room."""
    with (folder / "terabyte.png").open("wb") as file:
        file.write(PNG)
        file.truncate(1 << 40)


def _sidecar_link(folder: Path) -> None:
    (folder / "sidecar link.png").write_bytes(encoded(surface(34)))
    (folder / "sidecar link.json").symlink_to("/etc/passwd")


def _sidecar_folder(folder: Path) -> None:
    (folder / "sidecar folder.png").write_bytes(encoded(surface(35)))
    (folder / "sidecar folder.json").mkdir()


def _sidecar_pipe(folder: Path) -> None:
    """Make a pipe that nobody writes into: opened the usual way it would hold the line for ever."""
    (folder / "sidecar pipe.png").write_bytes(encoded(surface(36)))
    os.mkfifo(folder / "sidecar pipe.json")


def _sidecar(folder: Path, name: str, content: bytes) -> None:
    (folder / f"{name}.png").write_bytes(encoded(surface(sum(name.encode()))))
    (folder / f"{name}.json").write_bytes(content)


# name -> (what makes it, a pattern that the recorded reason must hold)
PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "link.png": (_link_out, "symbolic link"),
    "dangling.png": (_dangling_link, "symbolic link"),
    "loop.png": (_link_to_itself, "symbolic link"),
    "folder link.png": (_link_to_folder, "symbolic link"),
    "terabyte.png": (_sparse, "at most"),
    "sidecar link.png": (_sidecar_link, "symbolic link"),
    "sidecar folder.png": (_sidecar_folder, "cannot be read|no ordinary file"),
    "sidecar pipe.png": (_sidecar_pipe, "no ordinary file"),
    "sidecar latin.png": (lambda folder: _sidecar(folder, "sidecar latin", b'{"serial": "caf\xe9"}'), "no JSON"),
    "sidecar lines.png": (lambda folder: _sidecar(folder, "sidecar lines", b'{"serial": "a\\nb"}'), "serial no text"),
    "sidecar zone.png": (
        lambda folder: _sidecar(folder, "sidecar zone", b'{"captured_at": "2026-11-22T06:15:00"}'),
        "time with its zone",
    ),
    "sidecar cut.png": (lambda folder: _sidecar(folder, "sidecar cut", b'{"serial": '), "no JSON"),
    "sidecar list.png": (lambda folder: _sidecar(folder, "sidecar list", b"[]"), "no JSON object"),
    "sidecar number.png": (lambda folder: _sidecar(folder, "sidecar number", b'{"serial": 7}'), "serial no text"),
    "sidecar nul.png": (lambda folder: _sidecar(folder, "sidecar nul", b'{"lot": "a\\u0000b"}'), "lot no text"),
    "sidecar time.png": (lambda folder: _sidecar(folder, "sidecar time", b'{"captured_at": "noon"}'), "noon"),
    "sidecar huge.png": (lambda folder: _sidecar(folder, "sidecar huge", b" " * 100_000), "at most"),
    "sidecar deep.png": (lambda folder: _sidecar(folder, "sidecar deep", b"[" * 50_000), "no JSON"),
}


def _not_utf8(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))).write_bytes(encoded(surface(31)))


def plant(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Fill a folder; return {name of each broken file: words its reason must hold} and the names of the sound ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content)
    for name, content in SOUND.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for make, _ in PLANTED.values():
        make(folder)
    _not_utf8(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    for passed_over in ("_own.png", ".hidden.png", "writing.png.part", "writing.png.tmp", "notes.txt", "Thumbs.db"):
        (folder / passed_over).write_bytes(encoded(surface(32)))
    broken = {name: words for name, (_, words) in BROKEN.items()} | {name: w for name, (_, w) in PLANTED.items()}
    return broken, [*SOUND, "caf\\xe9.png"]
