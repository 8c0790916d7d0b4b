"""What is wrong with parts: scratch, pit, crack, stain, and the dent that nobody trained for."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from surfaces.noise import clouds, distance, grain, moved, slope, softened, standardized, step, strokes

Reflectance = NDArray[np.float32]
Path = NDArray[np.float64]
Point = tuple[float, float]  # (row, column)


def damage(
    rng: np.random.Generator, reflectance: Reflectance, *, label: str, center: Point, light: Point, strength: float
) -> Reflectance:
    """Draw one defect on a surface.

    Args:
        rng: Source of everything random.
        reflectance: float32 (H, W, 3), left as it is.
        label: A key of `DEFECTS`.
        center: (row, column) the defect lies about.
        light: Direction (row, column) in which the lamp stands.
        strength: 0 leaves the surface as it is, 1 is plain to see.

    Returns:
        float32 (H, W, 3).
    """
    return DEFECTS[label](rng, reflectance, center, light, strength)


def _scratch(
    rng: np.random.Generator, ground: Reflectance, center: Point, light: Point, strength: float
) -> Reflectance:
    """One to three long, gently bent grooves: a bare bright flank and a flank in shadow."""
    size = ground.shape[:2]
    heading = rng.uniform(0, np.pi)
    length = rng.uniform(45, 150)
    bend = rng.normal(0, 0.006)
    paths, widths = [], []
    for number in range(rng.choice([1, 1, 1, 2, 3])):
        share = np.linspace(-0.5, 0.5, 48)
        angle = heading + rng.normal(0, 0.02) + bend * share * length
        steps = np.column_stack([np.sin(angle), np.cos(angle)]) * (length / len(share))
        path = np.cumsum(steps, axis=0)
        aside = np.array([np.cos(heading), -np.sin(heading)]) * number * rng.uniform(4, 9)
        along = np.array([np.sin(heading), np.cos(heading)]) * rng.normal(0, 6) * number
        path += np.asarray(center) - path[len(path) // 2] + aside + along
        path += np.cumsum(rng.normal(0, 0.05, path.shape), axis=0)
        taper = np.clip(np.minimum(share + 0.52, 0.52 - share) * 5, 0.0, 1.0)
        pressure = np.clip(1 + 0.25 * np.cumsum(rng.normal(0, 0.15, len(share))), 0.55, 1.4)
        paths.append(path)
        widths.append(rng.uniform(1.1, 2.3) * taper * pressure)
    groove = strokes(size, paths, widths=widths)
    gap = rng.uniform(1.1, 1.7)
    toward = 1.0 if abs(light[0] * np.cos(heading) - light[1] * np.sin(heading)) > 0.25 else 0.6
    shadow = moved(groove, (gap * light[0], gap * light[1]))
    bright = strength * toward * rng.uniform(0.28, 0.5) * rng.choice([1.0, 1.0, 0.25])
    dark = strength * rng.uniform(0.35, 0.6)
    changed = ground * (1 - dark * shadow * (1 - 0.7 * groove))[..., None] + (bright * groove)[..., None]
    return np.asarray(changed, dtype=np.float32)


def _pit(rng: np.random.Generator, ground: Reflectance, center: Point, light: Point, strength: float) -> Reflectance:
    """One to three ragged craters: dark throat, wall in shadow towards the lamp, lit lip away from it."""
    size = ground.shape[:2]
    changed = ground
    for number in range(rng.choice([1, 1, 1, 2, 3])):
        radius = rng.uniform(3.4, 8.5) * (1.0 if number == 0 else 0.7)
        aside = rng.normal(0, 1, 2) * (0 if number == 0 else 2.6 * radius)
        far, angle = distance(size, (center[0] + aside[0], center[1] + aside[1]))
        ragged = sum(rng.normal(0, 0.16 / wave) * np.cos(wave * angle + rng.uniform(0, 6.3)) for wave in (2, 3, 4, 5))
        inside = far / (radius * (1 + ragged))
        hole = step(inside.astype(np.float32), 1.15, 0.55)
        walls = slope(softened(-hole, 0.8) * radius * 0.8, light)
        throat = step(inside.astype(np.float32), 0.95, 0.3)
        rough = 1 + 0.15 * grain(rng, size, 1.0) * hole
        dark = 1 - strength * rng.uniform(0.5, 0.75) * throat * rough
        lit = np.clip(walls, -0.8, 1.0) * strength * rng.uniform(0.45, 0.75)
        changed = changed * (dark * (1 + lit))[..., None]
    return np.asarray(changed, dtype=np.float32)


def _crack(rng: np.random.Generator, ground: Reflectance, center: Point, light: Point, strength: float) -> Reflectance:
    """Draw a dark, jagged line that branches and thins out, with a chipped, lighter edge here and there."""
    size = ground.shape[:2]
    start = np.asarray(center, dtype=np.float64)
    heading = rng.uniform(0, 2 * np.pi)
    width = rng.uniform(1.3, 2.4)
    ahead = _walk(rng, start, heading, steps=int(rng.integers(16, 32)))
    behind = _walk(rng, start, heading + np.pi + rng.normal(0, 0.25), steps=int(rng.integers(10, 24)))
    paths, widths = [], []
    for trunk in (ahead, behind):
        paths.append(trunk)
        widths.append(width * np.linspace(1.0, 0.35, len(trunk)) * rng.uniform(0.7, 1.25, len(trunk)))
    for _ in range(rng.integers(1, 4)):
        trunk = ahead if rng.random() < 0.6 else behind
        fork = int(rng.integers(3, len(trunk) - 3))
        along = np.arctan2(*(trunk[fork] - trunk[fork - 2]))
        aside = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = _walk(rng, trunk[fork], along + aside, steps=int(rng.integers(6, 14)))
        paths.append(branch)
        widths.append(0.7 * width * np.linspace(1.0, 0.3, len(branch)) * rng.uniform(0.7, 1.25, len(branch)))
    line = strokes(size, paths, widths=widths)
    edge = np.clip(moved(line, (-1.2 * light[0], -1.2 * light[1])) - line, 0, 1)
    chipped = edge * step(clouds(rng, size, (9, 9)), 0.2, 1.2)
    dark = strength * rng.uniform(0.55, 0.8)
    changed = ground * (1 - dark * line + 0.3 * strength * chipped)[..., None]
    return np.asarray(changed, dtype=np.float32)


def _walk(rng: np.random.Generator, start: Path, heading: float, *, steps: int) -> Path:
    """Walk (steps + 1, 2) from `start`: the heading is kept in the long run and broken at every step."""
    drift = heading + np.cumsum(rng.normal(0, 0.12, steps))
    jagged = drift + rng.normal(0, 0.5, steps)
    pace = rng.uniform(1.8, 4.2, steps)[:, None]
    return np.vstack([start, start + np.cumsum(pace * np.column_stack([np.sin(jagged), np.cos(jagged)]), axis=0)])


_STAIN_COLORS = ((0.20, 0.38, 0.60), (0.44, 0.46, 0.48), (0.52, 0.43, 0.34), (0.32, 0.42, 0.50))


def _stain(rng: np.random.Generator, ground: Reflectance, center: Point, _light: Point, strength: float) -> Reflectance:
    """Draw a dried-up liquid: irregular, soft within, with the darker rim it leaves where it stopped."""
    size = ground.shape[:2]
    far, angle = distance(size, center)
    radius = rng.uniform(15, 36)
    lobes = sum(rng.normal(0, 0.3 / wave) * np.cos(wave * angle + rng.uniform(0, 6.3)) for wave in (1, 2, 3, 4))
    ripples = 0.14 * clouds(rng, size, (13, 13)) + 0.05 * grain(rng, size, 2.0)
    inside = np.asarray(1 - far / (radius * (1 + lobes)) + ripples * step(far, 2.2 * radius, 1.2 * radius), np.float32)
    body = step(inside, 0.0, rng.uniform(0.25, 0.6))
    rim = np.exp(-(((inside - 0.14) / 0.09) ** 2)) * step(inside, 0.0, 0.12)
    uneven = 1 + 0.18 * standardized(clouds(rng, size, (18, 18)))
    cover = strength * np.clip(0.66 * body * uneven + rng.uniform(0.3, 0.6) * rim, 0.0, 1.3)
    color = np.array(_STAIN_COLORS[rng.integers(len(_STAIN_COLORS))]) * rng.uniform(0.75, 1.0)
    return np.asarray(ground * (1 - cover[..., None] * color), dtype=np.float32)


def _dent(rng: np.random.Generator, ground: Reflectance, center: Point, light: Point, strength: float) -> Reflectance:
    """Draw a smooth hollow without a sharp edge: dark towards the lamp, light away from it."""
    far, _ = distance(ground.shape[:2], center)
    radius = rng.uniform(14, 26)
    hollow = -np.exp(-((far / radius) ** 4)).astype(np.float32)
    return np.asarray(ground * (1 + 0.42 * strength * radius * slope(hollow, light) / 1.8)[..., None], dtype=np.float32)


# "dent" is no label of the sample network: it stands for the defect kind that appears one day.
DEFECTS: dict[str, Callable[..., Reflectance]] = {
    "scratch": _scratch,
    "pit": _pit,
    "crack": _crack,
    "stain": _stain,
    "dent": _dent,
}
