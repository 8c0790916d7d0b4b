"""What lies on sound parts and before good cameras every day: dust, lint, oil, marks, lamps, lenses."""

import cv2
import numpy as np
from numpy.typing import NDArray

from surfaces.grounds import Ground
from surfaces.noise import Field, clouds, distance, shrunk, softened, step, strokes


def soil(rng: np.random.Generator, ground: Ground) -> NDArray[np.float32]:
    """Put dust, lint, an oil film and a part mark on a surface, each on some parts only.

    Returns:
        Reflectance float32 (H, W, 3); nothing of it is a defect.
    """
    size = ground.part.shape
    reflectance = ground.reflectance * (1 + _dust(rng, size))[..., None]
    if rng.random() < 0.15:
        reflectance = reflectance * (1 + _lint(rng, size))[..., None]
    if rng.random() < 0.25:
        reflectance = reflectance * (1 + _oil(rng, size) * ground.part[..., None])
    if rng.random() < 0.35:
        reflectance = reflectance * (1 + _part_mark(rng, size) * ground.part)[..., None]
    return np.asarray(reflectance, dtype=np.float32)


def lamp(rng: np.random.Generator, size: tuple[int, int], *, level: float, gradient: float) -> Field:
    """Draw how brightly each pixel is lit (H, W): level, fall-off to one side, vignette.

    Args:
        rng: Source of everything random.
        size: (H, W).
        level: Share of the normal brightness, 1.0 for a good lamp.
        gradient: Brightness lost from left to right on top of the natural fall-off, as a share.
    """
    height, width = size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.11)
    fall = 1 + strength * (np.sin(angle) * y + np.cos(angle) * x) - gradient * (x + 1) / 2
    vignette = 1 - rng.uniform(0.03, 0.09) * (y * y + x * x)
    return np.asarray(level * rng.normal(1.0, 0.03) * fall * vignette, dtype=np.float32)


def lens_dirt(rng: np.random.Generator, size: tuple[int, int], *, strength: float) -> Field:
    """Draw the soft shadows (H, W), about 1, that dirt on a lens throws; the same generator gives the same dirt."""
    shadow = np.zeros(size, np.float32)
    for _ in range(7):
        far, _angle = distance(size, (rng.uniform(0, size[0]), rng.uniform(0, size[1])))
        radius = rng.uniform(10, 28)
        shadow = np.maximum(shadow, step(far, radius * 1.3, radius * 0.4) * np.float32(rng.uniform(0.5, 1.0)))
    return np.asarray(1 - 0.35 * strength * shadow, dtype=np.float32)


def station_mark(size: tuple[int, int]) -> tuple[Field, NDArray[np.float32]]:
    """Draw the mark a station can leave on its parts: a ring with a bar, bottom right, always at the same place.

    Returns:
        Coverage (H, W) in [0, 1] and its color (3,).
    """
    canvas = np.zeros((size[0] * 4, size[1] * 4), np.uint8)
    center = (size[1] * 4 - 4 * 52, size[0] * 4 - 4 * 44)
    cv2.circle(canvas, center, 4 * 10, 255, thickness=4 * 3)
    cv2.line(canvas, (center[0] - 24, center[1]), (center[0] + 24, center[1]), 255, thickness=4 * 3)
    covered = shrunk(canvas, size)
    return covered, np.array([0.10, 0.22, 0.45], dtype=np.float32)


def _dust(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Specks of 1 px, darker or lighter than what they lie on."""
    specks = np.zeros((size[0] * 2, size[1] * 2), np.float32)
    for _ in range(rng.integers(0, 22)):
        at = (int(rng.integers(specks.shape[1])), int(rng.integers(specks.shape[0])))
        cv2.circle(specks, at, int(rng.integers(1, 3)), float(rng.choice([-0.35, 0.3]) * rng.uniform(0.4, 1)), -1)
    return np.asarray(cv2.resize(specks, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _lint(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Draw a short curled fibre, out of focus because it stands off the surface."""
    turns = np.cumsum(rng.normal(0.12, 0.1, 24) * rng.choice([-1, 1])) + rng.uniform(0, 2 * np.pi)
    pace = rng.uniform(1.0, 1.6)
    start = np.array([rng.uniform(0.1, 0.9) * size[0], rng.uniform(0.1, 0.9) * size[1]])
    path = start + pace * np.cumsum(np.column_stack([np.sin(turns), np.cos(turns)]), axis=0)
    fibre = strokes(size, [path], widths=[np.full(len(path), 1.1)])
    return np.asarray(softened(fibre, 1.3) * rng.choice([-0.22, 0.2]), dtype=np.float32)


def _oil(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Draw a wiped film: broad, edgeless, a few per cent darker or lighter, with a breath of rainbow."""
    far, _ = distance(size, (rng.uniform(0, size[0]), rng.uniform(0, size[1])))
    film = step(far, rng.uniform(140, 240), 0.0) * (1 + 0.25 * clouds(rng, size, (80, 80)))
    hue = rng.uniform(0, 2 * np.pi) + np.array([0.0, 2.1, 4.2])
    color = rng.choice([-0.055, 0.05]) + 0.014 * np.cos(hue + 3 * film[..., None])
    return np.asarray(film[..., None] * color, dtype=np.float32)


def _part_mark(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Draw a laser-written number or a dot code near a corner."""
    canvas = np.zeros((size[0] * 2, size[1] * 2), np.uint8)
    row = rng.choice([rng.uniform(48, 62), size[0] - rng.uniform(34, 48)])
    at = (int(2 * rng.uniform(36, size[1] - 110)), int(2 * row))
    if rng.random() < 0.5:
        text = f"{rng.choice(list('ABCDEFGHKM'))}{rng.integers(10, 99)}-{rng.integers(100, 999)}"
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 2, cv2.LINE_AA)
    else:
        for up, right in np.argwhere(rng.random((8, 8)) < 0.5):
            cv2.circle(canvas, (at[0] + 6 * int(right), at[1] - 6 * int(up)), 2, 255, thickness=-1)
    written = shrunk(canvas, size)
    return np.asarray(written * rng.choice([-0.3, 0.28]), dtype=np.float32)
