"""The source task: a thousand classes, each a set of numbers for a formula, and the latents of each image.

Every number comes from PCG64's raw output, whose stream NumPy promises to keep: the uniform numbers are the
same on every machine, and what is computed from them differs in the last bits at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

VERSION = 1
FAMILIES = {"fractal": 400, "atom": 300, "leaves": 150, "wave": 150}
"""Number of classes of each family; classes are numbered in this order."""
NUM_CLASSES = sum(FAMILIES.values())
LATENTS = 64
"""Uniform numbers that an image is drawn from."""
SPLITS = {"classes": 0, "train": 1, "val": 2}

_PARAMETERS = 96
_MOST_MAPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """What the classes of each family are, as arrays with one row a class."""

    affine: Array
    """Fractals: (classes, 8, 2, 3) affine maps, unused ones zero."""
    share: Array
    """Fractals: (classes, 8) probability of each map, by its determinant."""
    uniform: dict[str, Array]
    """All families: (classes, 96) uniform numbers, which the renderer turns into its parameters."""


def draw_uniform(split: str, index: int, count: int, version: int = VERSION) -> Array:
    """Draw `count` uniform numbers in [0, 1) that belong to (version, split, index)."""
    import numpy as np

    bits = np.random.PCG64(np.random.SeedSequence([version, SPLITS[split], index]))
    values: Array = (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return values


def draw_latents(split: str, first: int, count: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Draw the labels, shape (count,), and latents, shape (count, 64), of images `first` and on.

    Image `i` is of class `i % 1000`.
    """
    import numpy as np

    indices = np.arange(first, first + count)
    latents = np.stack([draw_uniform(split, int(index), LATENTS) for index in indices])
    return indices % NUM_CLASSES, latents


def draw_classes() -> Classes:
    """Draw the parameters of all classes."""
    import numpy as np

    rows = np.stack([draw_uniform("classes", index, _PARAMETERS) for index in range(NUM_CLASSES)])
    parts = np.split(rows, np.cumsum(list(FAMILIES.values()))[:-1])
    uniform = dict(zip(FAMILIES, parts, strict=True))
    systems = [draw_system(row) for row in uniform["fractal"]]
    affine = np.stack([system for system, _ in systems])
    share = np.stack([share for _, share in systems])
    return Classes(affine=affine, share=share, uniform=uniform)


def draw_system(row: Array) -> tuple[Array, Array]:
    """Turn uniform numbers into an iterated function system of 2 to 8 maps, and the shares of its maps.

    Singular values are drawn under the sigma-factor rule of Anderson and Farrell, Improving fractal
    pre-training, WACV 2022: over n maps, s1 + 2 s2 sums to between (5 + n) / 2 and (6 + n) / 2, where
    systems look neither empty nor full.

    Returns:
        Affine maps (8, 2, 3) and shares (8,), both zero beyond the system's own maps.
    """
    import numpy as np

    draw = iter(row)
    count = 2 + int(next(draw) * 7)
    left = (5 + count + next(draw)) / 2
    affine = np.zeros((_MOST_MAPS, 2, 3))
    share = np.zeros(_MOST_MAPS)
    for index in range(count):
        # What the maps after this one can take at most.
        rest = 3 * (count - index - 1)
        if rest:
            low, high = max(0.0, (left - rest) / 3), min(1.0, left)
            first = low + (high - low) * next(draw)
            low, high = max(0.0, (left - first - rest) / 2), min(first, (left - first) / 2)
            second = low + (high - low) * next(draw)
        else:
            low, high = max(0.0, (left - 1) / 2), left / 3
            second = low + (high - low) * next(draw)
            first = left - 2 * second
            next(draw)
        left -= first + 2 * second
        flips = [1.0 if next(draw) < 0.5 else -1.0 for _ in range(2)]
        stretch = np.diag([first, second])
        turns = [_rotation(2 * math.pi * next(draw)) for _ in range(2)]
        affine[index, :, :2] = turns[0] @ stretch @ turns[1] @ np.diag(flips)
        affine[index, :, 2] = [2 * next(draw) - 1, 2 * next(draw) - 1]
        share[index] = max(first * second, 0.01)
    return affine, share / share.sum()


def _rotation(angle: float) -> Array:
    import numpy as np

    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
