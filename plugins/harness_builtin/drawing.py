"""Draws one flower, by exactly rounded arithmetic and PCG64's raw output only.

No sine and no normal deviate: their last bits differ between machines and versions, and with them the pixels
and the data set's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # Single precision throughout.
    Array = npt.NDArray[np.floating]
    Pixels = npt.NDArray[np.uint8]

SIDE = 64
"""Width and height of an image, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flower:
    """What makes a class."""

    petals: int
    shape: Literal["round", "pointed", "notched", "narrow"]
    double: bool = False
    """A second, shorter whorl of as many petals stands between the first."""

    @property
    def name(self) -> str:
        """For example `05-round-double`."""
        return f"{self.petals:02}-{self.shape}" + ("-double" if self.double else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What makes a flower hard to tell."""

    tilt: float = 0.3
    """Largest share of its height that a flower's tilt takes away, in [0, 1)."""
    smallest: float = 0.62
    """Least radius of a flower, in halves of the image."""
    clutter: float = 0.4
    """How much stands behind and before the flower, in [0, 1]."""


def draw_flower(flower: Flower, scene: Scene, seed: Sequence[int]) -> Pixels:
    """Draw one image: uint8 (64, 64, 3)."""
    import numpy as np

    chance = _Chance(np.random.PCG64(np.random.SeedSequence(seed)))
    axis = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1).astype(np.float32)
    x, y = axis[None, :], axis[:, None]

    canvas = _background(chance)
    for _ in range(int(chance.one() * 7 * scene.clutter)):
        canvas = _leaf(canvas, chance, x, y, at_centre=False)
    canvas = _flower(canvas, flower, scene, chance, x, y)
    while chance.one() < 0.45 * scene.clutter:
        canvas = _leaf(canvas, chance, x, y, at_centre=True)
    return _developed(canvas, chance, scene.clutter)


class _Chance:
    """Uniform numbers from a generator's raw output, whose stream NumPy promises to keep."""

    def __init__(self, bits: np.random.PCG64) -> None:
        self._bits = bits

    def many(self, *shape: int) -> Array:
        import numpy as np

        whole = self._bits.random_raw(math.prod(shape)) >> np.uint64(40)
        values: Array = (whole.astype(np.float32) * np.float32(2.0**-24)).reshape(shape)
        return values

    def bell(self, *shape: int) -> Array:
        """Sums of three uniform numbers, about zero: bell-shaped enough for noise."""
        import numpy as np

        whole = self._bits.random_raw(math.prod(shape))
        part = np.uint64(2**21 - 1)
        total = (whole & part) + ((whole >> np.uint64(21)) & part) + (whole >> np.uint64(43))
        values: Array = total.astype(np.float32).reshape(shape) * np.float32(2.0**-21) - np.float32(1.5)
        return values

    def one(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.many(1)[0])


def _background(chance: _Chance) -> Array:
    """Two-coloured clouds, mostly of earth and foliage; float32 (3, 64, 64)."""
    low, high = _natural(chance), _natural(chance)
    share = 0.5 * _clouds(chance, 3) + 0.3 * _clouds(chance, 7) + 0.2 * _clouds(chance, 15)
    clouds: Array = low + (high - low) * share
    return clouds


def _natural(chance: _Chance) -> Array:
    """Return a colour: a green or brown in two of three cases, else any that is not bright."""
    import numpy as np

    base: Array = chance.many(3) * np.float32(0.7)
    if chance.one() < 0.67:
        base = base * np.array([0.6, 1.0, 0.4], np.float32) + np.array([0.1, 0.12, 0.03], np.float32)
    return base.reshape(3, 1, 1)


def _clouds(chance: _Chance, cells: int) -> Array:
    """Smooth noise, stretched linearly from a grid; float32 (64, 64) in [0, 1)."""
    import numpy as np

    knots = chance.many(cells + 1, cells + 1)
    place = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) / SIDE * cells
    low = place.astype(np.int64)
    share = place - low.astype(np.float32)
    rows = knots[low] * (1 - share)[:, None] + knots[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _flower(canvas: Array, flower: Flower, scene: Scene, chance: _Chance, x: Array, y: Array) -> Array:
    import numpy as np

    radius = chance.one(scene.smallest, 0.98)
    x, y = x - chance.one(-0.2, 0.2), y - chance.one(-0.2, 0.2)
    # Tilt: foreshortened along one direction, then turned within its own plane.
    x, y = _turned(x, y, chance.one())
    y = y / (1 - chance.one(0, scene.tilt))
    turn = chance.one()
    inner, outer, light = _bright(chance), _bright(chance), chance.one()
    whorls = [(1.0, turn, 1.0)]
    if flower.double:
        whorls.append((chance.one(0.55, 0.68), turn + 0.5 / flower.petals, chance.one(0.8, 1.25)))
    for length, start, tone in whorls:
        for petal in range(flower.petals):
            angle = start + (petal + chance.one(-0.1, 0.1)) / flower.petals
            u, v = _turned(x, y, angle)
            reach = radius * length * chance.one(0.92, 1.0)
            u, v = u / reach, v / reach
            width = _half_width(flower, u)
            inside = width - abs(v)
            if flower.shape == "notched":
                # A wedge is cut from the tip.
                inside = np.minimum(inside, abs(v) - (u - 0.7) * np.float32(0.8))
            cover = (inside * (reach * SIDE / 2) + 0.5).clip(0, 1)
            # A petal is a trough: darker at its rim, and on the side away from the light.
            rim = (abs(v) / (width + np.float32(0.02))).clip(0, 1)
            side = _cosine(angle - light)
            shade = tone * (1 - 0.35 * rim * rim) * (0.92 + 0.13 * side)
            colour: Array = (inner + (outer - inner) * u.clip(0, 1)) * shade
            canvas = _laid_over(canvas, cover, colour)
    heart = radius * chance.one(0.1, 0.2)
    distance = np.sqrt(x * x + y * y)
    cover = ((heart - distance) * (SIDE / 2) + 0.5).clip(0, 1)
    return _laid_over(canvas, cover, _bright(chance) * (1.1 - 0.5 * (distance / heart).clip(0, 1)))


def _half_width(flower: Flower, u: Array) -> Array:
    """Return half of a petal's width at a share `u` of its length; zero or less beyond its ends."""
    import numpy as np

    # What each petal could take without touching the next, at most.
    room = min(0.42, 1.9 / flower.petals)
    if flower.shape == "pointed":
        inside = u.clip(0, 1)
        width = room * 2.2 * (1 - inside) * np.sqrt(inside)
    else:
        centre, reach = (0.56, 0.44) if flower.shape != "narrow" else (0.54, 0.46)
        offset = (u - centre) / reach
        width = room * np.sqrt((1 - offset * offset).clip(0, 1))
        if flower.shape == "narrow":
            width = width * (0.13 / room if flower.petals > 6 else 0.16 / room)
    outside = (u <= 0) | (u >= 1)
    half: Array = np.where(outside, np.float32(-1), width)
    return half


def _bright(chance: _Chance) -> Array:
    """Return a petal's colour: any hue, brighter than most backgrounds."""
    import numpy as np

    colour = chance.many(3)
    brightest = np.float32(chance.one(0.7, 1.0))
    scaled: Array = colour / max(float(colour.max()), 0.05) * brightest
    return scaled.reshape(3, 1, 1)


def _leaf(canvas: Array, chance: _Chance, x: Array, y: Array, *, at_centre: bool) -> Array:
    """Lay a leaf or a blade of grass behind the flower, or a small one over it."""
    reach = 0.75 if at_centre else 1.1
    dx, dy = chance.one(-reach, reach), chance.one(-reach, reach)
    u, v = _turned(x - dx, y - dy, chance.one())
    length = chance.one(0.2, 0.5) if at_centre else chance.one(0.3, 0.9)
    width = length * chance.one(0.12, 0.4)
    offset = u / length
    edge = width * (1 - offset * offset)
    cover = ((edge - abs(v)) * (SIDE / 2) + 0.5).clip(0, 1)
    colour = _natural(chance) * (1 - 0.3 * (abs(v) / width).clip(0, 1))
    return _laid_over(canvas, cover, colour)


def _developed(canvas: Array, chance: _Chance, clutter: float) -> Pixels:
    """Add uneven light, exposure and noise; then 8 bits."""
    import numpy as np

    shadow = 1 - (0.3 + 0.4 * clutter) * chance.one() * _clouds(chance, 2)
    canvas = canvas * (shadow * chance.one(0.75, 1.15))
    canvas = canvas + chance.bell(3, SIDE, SIDE) * chance.one(0.01, 0.08 + 0.08 * clutter)
    pixels: Pixels = np.floor(canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels.transpose(1, 2, 0)


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Rotate coordinates by an angle in turns."""
    cosine, sine = _cosine(angle), _cosine(angle - 0.25)
    return cosine * x + sine * y, cosine * y - sine * x


def _cosine(turns: float) -> float:
    """Cosine of an angle in turns, by its series: sums and products round alike everywhere."""
    turns = abs((turns + 0.5) % 1.0 - 0.5)
    # Within a quarter turn, where eleven terms are exact to the last bits.
    sign, turns = (-1.0, 0.5 - turns) if turns > 0.25 else (1.0, turns)
    radians = 2 * math.pi * turns
    square = radians * radians
    term, total = 1.0, 1.0
    for k in range(1, 11):
        term = -term * square / ((2 * k - 1) * (2 * k))
        total += term
    return sign * total


def _laid_over(canvas: Array, cover: Array, colour: Array) -> Array:
    result: Array = canvas + (colour - canvas) * cover
    return result
