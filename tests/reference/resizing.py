"""Makes resizing.npz: what the frameworks themselves make of two small pictures, for tests/maths/test_resizing.py.

Run it in an environment of its own with torch 2.13, torchvision 0.28, tensorflow-cpu 2.21 (with Keras 3.15),
ultralytics 8.4, pillow 12.3 and opencv-python: python tests/reference/resizing.py
PaddleClas is no package one can install beside them; its two operators, ResizeImage(resize_short=...) with the backend
"cv2" and CropImage, are written down here as its documentation defines them.
"""

from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf
import torch
from PIL import Image
from torchvision.transforms import v2
from ultralytics.data.augment import LetterBox

HERE = Path(__file__).parent
SIZE = (15, 20)


def picture(height: int, width: int) -> np.ndarray:
    """Noise on soft waves: every arithmetic makes something else of it."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width].astype(float)
    waves = 128 + 60 * np.sin(rows / 3) * np.cos(columns / 4)
    return np.clip(waves[..., None] + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)


def paddle_clas(pixels: np.ndarray, short: int, crop: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    percent = float(short) / min(width, height)
    resized = cv2.resize(pixels, (round(width * percent), round(height * percent)))
    height, width = resized.shape[:2]
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top : top + crop, left : left + crop]


def of(pixels: np.ndarray) -> dict[str, np.ndarray]:
    pil = Image.fromarray(pixels)
    planes = torch.from_numpy(pixels).permute(2, 0, 1).float()
    modes = v2.InterpolationMode
    found: dict[str, np.ndarray] = {}
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        mode = modes(name)
        found[f"torchvision {name}"] = np.asarray(v2.functional.resize(pil, list(SIZE), interpolation=mode))
    for name, mode in (("bilinear", modes.BILINEAR), ("bicubic", modes.BICUBIC)):
        found[f"torchvision tensor {name}"] = (
            v2.functional.resize(planes, list(SIZE), interpolation=mode, antialias=True).permute(1, 2, 0).numpy()
        )
        found[f"torchvision uint8 tensor {name}"] = (
            v2.functional.resize(planes.byte(), list(SIZE), interpolation=mode, antialias=True).permute(1, 2, 0).numpy()
        )
    for mode, name in ((modes.BILINEAR, "bilinear"), (modes.BICUBIC, "bicubic")):
        crop = v2.Compose([v2.Resize(17, interpolation=mode), v2.CenterCrop(15)])
        found[f"torchvision {name} resize 17 crop 15"] = np.asarray(crop(pil))
    found["tensorflow bilinear"] = tf.image.resize(pixels, SIZE).numpy()
    file = HERE / "resizing.png"
    pil.save(file)
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        loaded = keras.utils.load_img(file, target_size=SIZE, interpolation=name)
        found[f"keras load_img {name}"] = np.asarray(loaded)
    file.unlink()
    found["keras smart_resize"] = np.asarray(keras.preprocessing.image.smart_resize(pixels, SIZE))
    found["ultralytics letterbox"] = LetterBox(SIZE, auto=False, scaleup=True)(image=pixels)
    found["opencv linear"] = cv2.resize(pixels, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_LINEAR)
    found["opencv cubic"] = cv2.resize(pixels, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_CUBIC)
    found["paddleclas resize 17 crop 15"] = paddle_clas(pixels, 17, 15)
    return found


def main() -> None:
    arrays = {}
    for height, width in ((37, 45), (33, 24), (11, 13)):
        pixels = picture(height, width)
        arrays[f"{height}x{width}"] = pixels
        arrays |= {f"{height}x{width} {name}": found for name, found in of(pixels).items()}
    np.savez_compressed(HERE / "resizing.npz", **arrays)


if __name__ == "__main__":
    main()
