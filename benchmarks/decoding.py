"""What reading a picture strictly costs: each format by `decode_picture` and by OpenCV alone, in turn in one process.

    python -m benchmarks.decoding           2000 x 3000 and 224 x 224 pixels, the median of the ratios of 15 rounds

OpenCV alone passes over damage; the pictures are equal bit by bit (`tests/intake/test_decode.py`).
"""

import io
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inspect_xai.intake.decode import decode_picture
from inspect_xai.records import PictureLimits

ROUNDS = 15
LIMITS = PictureLimits()
FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION


def main() -> None:
    cv2.setNumThreads(1)
    for height, width in ((2_000, 3_000), (224, 224)):
        print(f"{width} x {height} pixels")
        for name, data in files(surface(height, width)).items():
            assert np.array_equal(decode_picture(data, limits=LIMITS), with_opencv(data)), name
            strict, bare = in_turn(
                lambda data=data: decode_picture(data, limits=LIMITS), lambda data=data: with_opencv(data)
            )
            ratios = sorted(one / other for one, other in zip(strict, bare, strict=True))
            print(
                f"  {name:18} {len(data):>9} bytes  {statistics.median(ratios):.2f} "
                f"({ratios[len(ratios) // 4]:.2f} to {ratios[-len(ratios) // 4]:.2f})  "
                f"{1e3 * statistics.median(strict):.1f} ms"
            )


def surface(height: int, width: int) -> NDArray[np.uint8]:
    """Return a surface with the noise of a camera, (H, W, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (height // 16, width // 16, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def files(pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    color, gray = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return {
        "JPEG": saved(color, "JPEG", quality=90),
        "JPEG progressive": saved(color, "JPEG", quality=90, progressive=True),
        "JPEG gray": saved(gray, "JPEG", quality=90),
        "PNG": saved(color, "PNG"),
        "PNG gray": saved(gray, "PNG"),
        "PNG 16 bit": saved(deep, "PNG"),
        "TIFF": saved(color, "TIFF"),
        "TIFF 16 bit": saved(deep, "TIFF"),
        "TIFF LZW": saved(color, "TIFF", compression="tiff_lzw"),
        "TIFF deflate": saved(color, "TIFF", compression="tiff_adobe_deflate"),
        "BMP": saved(color, "BMP"),
    }


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def with_opencv(data: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 510 + 65_535) // 131_070).astype(np.uint8)
    return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def in_turn(*readers: Callable[[], object]) -> tuple[list[float], ...]:
    """Return the seconds that each reader took, round by round."""
    took: tuple[list[float], ...] = tuple([] for _ in readers)
    for _ in range(ROUNDS):
        for reader, seconds in zip(readers, took, strict=True):
            began = time.perf_counter()
            reader()
            seconds.append(time.perf_counter() - began)
    return took


if __name__ == "__main__":
    main()
