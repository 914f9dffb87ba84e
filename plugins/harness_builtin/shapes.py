"""A small generated data set: eight shapes, with all else left to chance.

Only exactly rounded arithmetic and PCG64's raw output are used (no sine, no normal deviate), so that the
pixels, and with them the fingerprint, are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness import Sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]
    Draw = Callable[..., Array]

VERSION = 1
SIDE = 64
SIZES: dict[Literal["train", "val", "test"], int] = {"train": 480, "val": 240, "test": 240}
CLASSES = ("circle", "crescent", "cross", "half-disc", "ring", "square", "star", "triangle")

_SUPERSAMPLING = 2
# A five-pointed star of radius 1; its inner corners lie at 0.45.
_STAR = (
    (0.0, -1.0), (0.2645, -0.3641), (0.9511, -0.3090), (0.4280, 0.1391), (0.5878, 0.8090),
    (0.0, 0.45), (-0.5878, 0.8090), (-0.4280, 0.1391), (-0.9511, -0.3090), (-0.2645, -0.3641),
)  # fmt: skip
_TRIANGLE = ((0.0, -1.0), (0.8660, 0.5), (-0.8660, 0.5))


def build_shapes(folder: Path, download: bool) -> Iterable[Sample]:
    """Render all images; reads and writes nothing."""
    for number, (split, size) in enumerate(SIZES.items()):
        for index in range(size):
            label = index % len(CLASSES)
            yield Sample(
                id=f"{split}/{CLASSES[label]}/{index:03}",
                label=CLASSES[label],
                image=render(label, number, index),
                split=split,
            )


def render(label: int, split: int, index: int) -> npt.NDArray[np.uint8]:
    """Draw one image: uint8 (64, 64, 3), seeded by (version, split, index)."""
    import numpy as np

    bits = np.random.PCG64(np.random.SeedSequence([VERSION, split, index]))

    def draw(*shape: int) -> Array:
        """Uniform in [0, 1), from the raw output, whose stream NumPy promises to keep."""
        whole = bits.random_raw(math.prod(shape)) >> np.uint64(11)
        values: Array = whole.astype(np.float64).reshape(shape) * 2.0**-53
        return values

    fine = SIDE * _SUPERSAMPLING
    grid = (np.arange(fine) + 0.5) / fine * 2 - 1
    y, x = grid[:, None], grid[None, :]

    background, paint = _two_colours(draw)
    canvas = background + _clouds(draw) * 0.3 * draw(1)
    for _ in range(int(draw(1)[0] * 4)):
        colour = draw(3)
        canvas = _laid_over(canvas, _clutter(draw, x, y), colour)
    mask = _placed(CLASSES[label], draw, x, y)
    canvas = _laid_over(canvas, mask, paint + 0.2 * _clouds(draw))
    if draw(1)[0] < 0.2:
        canvas = _laid_over(canvas, _bar(draw, x, y), draw(3))
    # The sum of three uniforms is bell-shaped enough for noise.
    noise = draw(SIDE, SIDE, 3) + draw(SIDE, SIDE, 3) + draw(SIDE, SIDE, 3) - 1.5
    canvas = canvas + noise * (0.02 + 0.08 * draw(1))
    pixels: npt.NDArray[np.uint8] = np.floor(canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _two_colours(draw: Draw) -> tuple[Array, Array]:
    """Draw a darker colour for the background and a brighter one for the shape."""
    return 0.5 * draw(3), 0.45 + 0.55 * draw(3)


def _clouds(draw: Draw) -> Array:
    """Smooth random colour over the image: a 5 x 5 grid, stretched linearly; (64, 64, 3) in [-0.5, 0.5)."""
    import numpy as np

    knots = draw(5, 5, 3) - 0.5
    place = (np.arange(SIDE) + 0.5) / SIDE * 4
    low = place.astype(np.int64)
    share = place - low
    rows = knots[low] * (1 - share)[:, None, None] + knots[low + 1] * share[:, None, None]
    return rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]


def _placed(name: str, draw: Draw, x: Array, y: Array) -> Mask:
    """Draw the mask of a shape of random place, size and angle."""
    scale = 0.55 + 0.3 * draw(1)[0]
    x, y = x - (draw(1)[0] - 0.5) * 0.3, y - (draw(1)[0] - 0.5) * 0.3
    u, v = _turned(draw, x, y, reach=0.7)
    u = u * (0.85 + 0.3 * draw(1)[0])
    return _inside(name, u / scale, v / scale)


def _turned(draw: Draw, x: Array, y: Array, reach: float = 1.0) -> tuple[Array, Array]:
    """Rotate by a random angle whose tangent is at most `reach`, made exact by a square root."""
    slope = (draw(1)[0] * 2 - 1) * reach
    cosine = 1 / math.sqrt(1 + slope * slope)
    sine = slope * cosine
    return cosine * x + sine * y, cosine * y - sine * x


def _inside(name: str, u: Array, v: Array) -> Mask:
    square = u * u + v * v
    masks: dict[str, Callable[[], Mask]] = {
        "circle": lambda: square < 0.8,
        "crescent": lambda: (square < 1) & ((u - 0.5) * (u - 0.5) + v * v > 0.64),
        "cross": lambda: ((abs(u) < 0.32) | (abs(v) < 0.32)) & (abs(u) < 1) & (abs(v) < 1),
        "half-disc": lambda: (square < 1.2) & (v > 0),
        "ring": lambda: (square < 1) & (square > 0.3),
        "square": lambda: (abs(u) < 0.78) & (abs(v) < 0.78),
        "star": lambda: _polygon(_STAR, u, v),
        "triangle": lambda: _polygon(_TRIANGLE, u, v),
    }
    return masks[name]()


def _polygon(corners: tuple[tuple[float, float], ...], u: Array, v: Array) -> Mask:
    """Even-odd rule."""
    inside: Mask = u != u
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if v0 != v1:
            crosses = ((v0 > v) != (v1 > v)) & (u < (u1 - u0) * (v - v0) / (v1 - v0) + u0)
            inside = inside ^ crosses
    return inside


def _clutter(draw: Draw, x: Array, y: Array) -> Mask:
    """Draw a small disc or a thin line somewhere."""
    u, v = _turned(draw, x - (draw(1)[0] * 2 - 1), y - (draw(1)[0] * 2 - 1))
    size = 0.05 + 0.07 * draw(1)[0]
    round_one: Mask = u * u + v * v < size * size
    long_one: Mask = (abs(v) < size / 3) & (abs(u) < 5 * size)
    return round_one if draw(1)[0] < 0.5 else long_one


def _bar(draw: Draw, x: Array, y: Array) -> Mask:
    """Draw a bar that hides a part of the image."""
    _, v = _turned(draw, x, y)
    mask: Mask = abs(v - (draw(1)[0] - 0.5)) < 0.05 + 0.08 * draw(1)[0]
    return mask


def _laid_over(canvas: Array, mask: Mask, colour: Array) -> Array:
    """Paint where the mask is, with soft edges: the mask is finer than the canvas."""
    parts = mask.reshape(SIDE, _SUPERSAMPLING, SIDE, _SUPERSAMPLING).sum(axis=(1, 3))
    share = (parts / _SUPERSAMPLING**2)[:, :, None]
    result: Array = canvas * (1 - share) + colour * share
    return result
