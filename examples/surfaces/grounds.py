"""Sound surfaces: brushed steel, cast metal and glazed tile, as reflectance (H, W, 3) about 0 to 1."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from surfaces.noise import Field, clouds, distance, grain, shrunk, slope, softened, step

# Width in px of what shows beside the part at (top, right, bottom, left) when the fixture stands where it should.
_BORDERS = {"steel": (15, 0, 17, 0), "cast": (20, 0, 0, 22), "tile": (0, 22, 0, 26)}


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A surface before anything happened to it.

    Attributes:
        reflectance: float32 (H, W, 3).
        part: float32 (H, W), 1 on the part, 0 on what lies beside it.
        light: Direction (row, column) of length 1 in which the lamp stands.
    """

    reflectance: NDArray[np.float32]
    part: Field
    light: tuple[float, float]


def draw_ground(
    rng: np.random.Generator, surface: str, *, size: tuple[int, int], shift_px: tuple[float, float] = (0.0, 0.0)
) -> Ground:
    """Draw a sound surface.

    Args:
        rng: Source of everything random.
        surface: "steel", "cast" or "tile".
        size: (H, W) of the picture.
        shift_px: How far (rows, columns) the part lies from where the fixture should hold it.
    """
    angle = rng.uniform(0, 2 * np.pi)
    light = (float(np.sin(angle)), float(np.cos(angle)))
    part = _part(rng, surface, size=size, shift_px=shift_px)
    draw = {"steel": _steel, "cast": _cast, "tile": _tile}[surface]
    reflectance = draw(rng, size, light)
    beside = _joint(rng, reflectance, part) if surface == "tile" else _fixture(rng, size)
    # The rounded rim catches light where it faces the lamp and loses it where it turns away.
    rim = slope(softened(part, 1.6), light) * (1.1 if surface == "tile" else 1.6)
    reflectance = reflectance * part[..., None] + beside * (1 - part[..., None])
    return Ground((reflectance * (1 + np.clip(rim, -0.6, 0.7))[..., None]).astype(np.float32), part, light)


def _part(rng: np.random.Generator, surface: str, *, size: tuple[int, int], shift_px: tuple[float, float]) -> Field:
    """Draw where the part lies (H, W): a rectangle a little turned, moved by hand's play and by `shift_px`."""
    height, width = size
    top, right, bottom, left = _BORDERS[surface]
    play = rng.normal(0, 1.5, 2)
    dy, dx = play + np.asarray(shift_px)
    far = 80  # a side without border goes on well outside the picture, also when the part moves
    box = np.array(
        [
            [-far if left == 0 else left + dx, -far if top == 0 else top + dy],
            [width + far if right == 0 else width - right + dx, -far if top == 0 else top + dy],
            [width + far if right == 0 else width - right + dx, height + far if bottom == 0 else height - bottom + dy],
            [-far if left == 0 else left + dx, height + far if bottom == 0 else height - bottom + dy],
        ]
    )
    turn = np.deg2rad(rng.normal(0, 0.35))
    center = np.array([width / 2, height / 2])
    box = (box - center) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + center
    canvas = np.zeros((height * 2, width * 2), np.uint8)
    cv2.fillPoly(canvas, [np.round(box * 2 * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    filled = shrunk(canvas, size)
    if surface == "cast":  # molds have no sharp corners, and their rims wander
        filled = step(softened(filled, 4.0) + 0.04 * clouds(rng, size, (30, 30)), 0.42, 0.58)
    return filled


def _steel(rng: np.random.Generator, size: tuple[int, int], _light: tuple[float, float]) -> NDArray[np.float32]:
    """Brushed sheet: streaks of many lengths along one direction and the bright bar a lamp throws across them."""
    height, width = size
    margin = 40
    wide = (height + 2 * margin, width + 2 * margin)
    straight = np.zeros(wide, np.float32)
    for weight, pitch_y, pitch_x in ((0.45, 0.9, 14.0), (0.6, 1.0, 60.0), (0.55, 1.7, 240.0), (0.35, 6.0, 400.0)):
        straight += weight * clouds(rng, wide, (pitch_y, pitch_x))
    straight += 0.25 * grain(rng, wide, 0.5)
    turn = cv2.getRotationMatrix2D((wide[1] / 2, wide[0] / 2), rng.uniform(-5, 5), 1.0)
    streaks = cv2.warpAffine(straight, turn, (wide[1], wide[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    streaks = streaks[margin:-margin, margin:-margin]
    x = np.arange(width, dtype=np.float32)[None, :]
    bar = np.exp(-(((x - rng.uniform(-0.2, 1.2) * width) / (rng.uniform(0.25, 0.5) * width)) ** 2))
    bar = bar * (1 + 0.12 * clouds(rng, size, (3.0, 120.0)))
    shade = rng.uniform(0.44, 0.54) * (1 + rng.uniform(0.05, 0.085) * streaks) + rng.uniform(0.08, 0.2) * bar
    tint = np.array([0.985, 1.0, 1.02]) + rng.normal(0, 0.006, 3)
    return np.asarray(shade[..., None] * tint, dtype=np.float32)


def _cast(rng: np.random.Generator, size: tuple[int, int], light: tuple[float, float]) -> NDArray[np.float32]:
    """Sand-cast skin: a lumpy relief under a slanting lamp, mottled, with pores too small to matter."""
    relief = (
        0.28 * grain(rng, size, 0.8)
        + 0.9 * grain(rng, size, 1.7)
        + 2.2 * grain(rng, size, 3.6)
        + 2.5 * grain(rng, size, 9.0)
    )
    facing = np.tanh(0.8 * slope(relief.astype(np.float32), light))
    mottling = 0.6 * clouds(rng, size, (45, 45)) + 0.6 * grain(rng, size, 1.5)
    shade = rng.uniform(0.36, 0.46) * (1 + rng.uniform(0.17, 0.25) * facing + 0.045 * mottling)
    shade = shade * (1 + 0.03 * grain(rng, size, 0.4))
    shade = shade * (1 - _pores(rng, size))
    tint = np.array([1.02, 1.0, 0.97]) + rng.normal(0, 0.008, 3)
    return np.asarray(shade[..., None] * tint, dtype=np.float32)


def _pores(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Dark dots below 2 px radius: (H, W), how much light each swallows."""
    canvas = np.zeros((size[0] * 4, size[1] * 4), np.uint8)
    for _ in range(rng.integers(15, 60)):
        at = (int(rng.integers(canvas.shape[1])), int(rng.integers(canvas.shape[0])))
        cv2.circle(canvas, at, round(4 * rng.uniform(0.5, 1.7)), int(rng.integers(70, 150)), thickness=-1)
    return shrunk(canvas, size)


_GLAZES = ((0.80, 0.79, 0.76), (0.74, 0.70, 0.62), (0.62, 0.66, 0.69), (0.70, 0.71, 0.71), (0.66, 0.57, 0.50))


def _tile(rng: np.random.Generator, size: tuple[int, int], light: tuple[float, float]) -> NDArray[np.float32]:
    """Glazed ceramic: nearly even color, faint speckle, orange-peel gloss and a lamp's soft reflection."""
    glaze = np.array(_GLAZES[rng.integers(len(_GLAZES))]) * rng.uniform(0.88, 1.0)
    peel = slope(6.0 * clouds(rng, size, (14, 14)), light)
    shade = 1 + 0.018 * clouds(rng, size, (90, 90)) + 0.012 * grain(rng, size, 1.0) + 0.012 * peel
    specks = (grain(rng, size, 0.7) > 2.75).astype(np.float32)
    specks = softened(specks, 0.6) * rng.uniform(0.1, 0.35)
    far, _ = distance(size, (rng.uniform(-0.2, 1.2) * size[0], rng.uniform(-0.2, 1.2) * size[1]))
    gloss = rng.uniform(0.02, 0.1) * step(far, rng.uniform(110, 260), 20.0)
    color = glaze * (shade - specks)[..., None] + gloss[..., None]
    return np.asarray(color, dtype=np.float32)


def _fixture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Draw the blackened rail beside a metal part."""
    shade = rng.uniform(0.09, 0.14) * (1 + 0.12 * grain(rng, size, 0.8) + 0.1 * clouds(rng, size, (60, 60)))
    return np.asarray(np.repeat(shade[..., None], 3, axis=2), dtype=np.float32)


def _joint(rng: np.random.Generator, glaze: NDArray[np.float32], part: Field) -> NDArray[np.float32]:
    """Draw what lies beside a tile: sandy mortar some pixels wide, then the next tile."""
    size = part.shape
    outside = np.asarray(cv2.distanceTransform((part < 0.5).astype(np.uint8), cv2.DIST_L2, 5), dtype=np.float32)
    sand = rng.uniform(0.34, 0.5) * (1 + 0.09 * grain(rng, size, 0.9) + 0.05 * grain(rng, size, 3.0))
    mortar = np.asarray(sand[..., None] * np.array([1.02, 1.0, 0.96]), dtype=np.float32)
    width = rng.uniform(8, 10)
    neighbor = step(outside, width, width + 1.5)[..., None]
    return np.asarray(mortar * (1 - neighbor) + glaze * neighbor * 0.98, dtype=np.float32)
