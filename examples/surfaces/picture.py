"""From a seed and an index to one finished picture with its truth."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from surfaces.defects import damage
from surfaces.grounds import Ground, draw_ground
from surfaces.noise import Field
from surfaces.nuisances import lamp, lens_dirt, soil, station_mark

OK_LABEL = "free"
LABELS = ("scratch", "pit", "crack", "stain", OK_LABEL)
SURFACES = ("steel", "cast", "tile")
SIZES = {"steel": (256, 384), "cast": (288, 384), "tile": (320, 448)}

_DEFECTIVE = 0.3  # share of defective parts when no label is asked for
_VISIBLE = 0.012  # a pixel belongs to the defect when the defect changes it by more than this (3 of 255 gray levels)
_LEAST_PX = 24  # a defect smaller than this is drawn again, stronger: a truth that nobody can see is none


@dataclass(frozen=True, slots=True)
class Condition:
    """What is unusual at a station. The defaults are an ordinary day.

    Attributes:
        shortcut: "" or what a classifier could learn instead of the defect: "mark" (the station's mark) or "gradient".
        shortcut_label: The label that goes together with the shortcut.
        shortcut_share: Share of that label's pictures that have it.
        shortcut_share_others: Share of all other pictures that have it.
        lamp: Brightness as a share of normal.
        shift_px: How far (rows, columns) the fixture holds the part from where it should.
        lens_dirt: 0 clean, 1 filthy; the same spots on every picture of a seed.
    """

    shortcut: str = ""
    shortcut_label: str = ""
    shortcut_share: float = 1.0
    shortcut_share_others: float = 0.0
    lamp: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    lens_dirt: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A rendered picture and the truth about it.

    Attributes:
        rgb: uint8 (H, W, 3).
        mask: bool (H, W): the pixels the defect changes visibly; all False on a sound part.
        part: bool (H, W): the part itself, without fixture, mortar or neighbor.
        label: One of `LABELS`, or a defect kind the sample network does not know.
        surface: One of `SURFACES`.
    """

    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    part: NDArray[np.bool_]
    label: str
    surface: str


ORDINARY = Condition()


def render(
    seed: int, index: int, *, label: str | None = None, surface: str | None = None, condition: Condition = ORDINARY
) -> Picture:
    """Render picture `index` of the series `seed`; the same arguments give the same bytes.

    Surface, soiling, light and camera noise do not depend on the label: the same seed and index with the label "free"
    is the same part before it was damaged, which shows whether a verdict hangs on the defect.

    Args:
        seed: The series.
        index: Number of the picture in it.
        label: One of `LABELS` or "dent"; None draws one, three in ten of them defects.
        surface: One of `SURFACES`; None draws one.
        condition: What is unusual that day.
    """
    streams = {
        name: np.random.default_rng([seed, index, number])
        for number, name in enumerate(("choice", "ground", "soil", "defect", "light", "noise", "shortcut"))
    }
    drawn_surface = str(streams["choice"].choice(SURFACES))
    drawn_label = _draw_label(streams["choice"])
    surface, label = surface or drawn_surface, label or drawn_label
    size = SIZES[surface]
    ground = draw_ground(streams["ground"], surface, size=size, shift_px=condition.shift_px)
    sound = soil(streams["soil"], ground)
    shortcut = _has_shortcut(streams["shortcut"], label, condition)
    if shortcut == "mark":
        covered, color = station_mark(size)
        sound = sound * (1 - covered[..., None]) + covered[..., None] * color
    lit = lamp(streams["light"], size, level=condition.lamp, gradient=0.35 if shortcut == "gradient" else 0.0)
    if condition.lens_dirt:
        lit = lit * lens_dirt(np.random.default_rng([seed, 7]), size, strength=condition.lens_dirt)
    after, mask = _seen(sound, lit), np.zeros(size, np.bool_)
    if label != OK_LABEL:
        after, mask = _damaged(streams["defect"], ground, sound, label=label, lit=lit)
    return Picture(_exposed(streams["noise"], after), mask, ground.part > 0.5, label, surface)


def _draw_label(rng: np.random.Generator) -> str:
    defective = rng.random() < _DEFECTIVE
    defect = str(rng.choice([name for name in LABELS if name != OK_LABEL]))
    return defect if defective else OK_LABEL


def _has_shortcut(rng: np.random.Generator, label: str, condition: Condition) -> str:
    share = condition.shortcut_share if label == condition.shortcut_label else condition.shortcut_share_others
    return condition.shortcut if rng.random() < share else ""


def _damaged(
    rng: np.random.Generator, ground: Ground, sound: NDArray[np.float32], *, label: str, lit: Field
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw a defect on the part so that it can be seen: what the lens sees (H, W, 3) and the mask (H, W)."""
    inner = np.argwhere(ndimage.binary_erosion(ground.part > 0.99, iterations=14))
    row, column = inner[rng.integers(len(inner))]
    # Most defects are plain, about one in twelve is faint: a line needs parts that a person must look at.
    strength = float(rng.uniform(0.3, 0.5) if rng.random() < 0.08 else rng.uniform(0.6, 1.0))
    shape = rng.integers(2**63)
    before = _seen(sound, lit)
    while True:
        again = np.random.default_rng(shape)
        center = (float(row), float(column))
        hurt = damage(again, sound, label=label, center=center, light=ground.light, strength=strength)
        after = _seen(sound + (hurt - sound) * ground.part[..., None], lit)
        mask = np.abs(after - before).max(axis=2) > _VISIBLE
        # The line between a lit and a shaded flank changes nothing, yet belongs to the defect.
        mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask) | mask) & (ground.part > 0.5)
        if mask.sum() >= _LEAST_PX:
            return after, mask
        strength *= 1.25


def _seen(reflectance: NDArray[np.float32], lit: Field) -> NDArray[np.float32]:
    """Return what the lens throws on the sensor: float32 (H, W, 3)."""
    seen = cv2.GaussianBlur(reflectance * lit[..., None], (0, 0), 0.65, borderType=cv2.BORDER_REFLECT)
    return np.asarray(seen, dtype=np.float32)


def _exposed(rng: np.random.Generator, seen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return what the sensor makes of it: shot noise that grows with light, clipped to 8 bits."""
    spread = np.sqrt(0.00002 + 0.0001 * np.clip(seen[..., 1], 0, 1)) * np.float32(rng.uniform(0.6, 1.1))
    noise = spread * rng.standard_normal(seen.shape[:2], dtype=np.float32)
    return np.asarray(np.round(np.clip(seen + noise[..., None], 0, 1) * 255), dtype=np.uint8)
