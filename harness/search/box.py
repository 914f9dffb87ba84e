"""A search space as numbers, in which a model can measure distances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from harness.search.gaussian import Floats


class Box:
    """A search space as numbers: one an axis as Optuna has it, or columns in which distance has a sense.

    An axis of numbers is one column from 0 to 1, in the logarithm where it is searched so; choices are a
    column each, and any two of them lie a distance of 1 apart.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = dict(space)
        self.axes = tuple(
            axis for axis, kind in enumerate(self._space.values()) for _ in range(_columns(kind))
        )

    def internal(self, params: Mapping[str, Any]) -> list[float]:
        """Return parameters as numbers."""
        return [kind.to_internal_repr(params[name]) for name, kind in self._space.items()]

    def external(self, point: Floats) -> dict[str, Any]:
        """Return numbers as parameters."""
        pairs = zip(self._space.items(), point.tolist(), strict=True)
        return {name: kind.to_external_repr(value) for (name, kind), value in pairs}

    def encode(self, points: Floats) -> Floats:
        """Return (N, columns) of (N, axes)."""
        parts = []
        for kind, values in zip(self._space.values(), points.T, strict=True):
            if isinstance(kind, CategoricalDistribution):
                parts.append(np.eye(len(kind.choices))[values.astype(int)] / math.sqrt(2))
            else:
                low, high = _ends(kind)
                parts.append((_scaled(kind, values) - low)[:, None] / (high - low))
        return np.concatenate(parts, axis=1)

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Draw points from all over the space."""
        return np.stack([self._draw(kind, count, rng) for kind in self._space.values()], axis=1)

    def near(self, points: Floats, rng: np.random.Generator) -> Floats:
        """Move points a little along about half of their axes of numbers, and give some another choice."""
        moved = points.copy()
        for axis, kind in enumerate(self._space.values()):
            if isinstance(kind, CategoricalDistribution):
                drawn = self._draw(kind, len(points), rng)
                moves = rng.random(len(points)) < 1 / len(self._space)
            else:
                low, high = _ends(kind)
                reach = max(0.15 * (high - low), getattr(kind, "step", None) or 0.0)
                drawn = _rounded(kind, _scaled(kind, points[:, axis]) + rng.normal(0, reach, len(points)))
                moves = rng.random(len(points)) < 0.5
            moved[moves, axis] = drawn[moves]
        return moved

    def _draw(self, kind: BaseDistribution, count: int, rng: np.random.Generator) -> Floats:
        if isinstance(kind, CategoricalDistribution):
            return rng.integers(len(kind.choices), size=count).astype(np.float64)
        low, high = _ends(kind)
        # Half a step more at either end: each of the steps has the same chance.
        margin = 0.5 * (getattr(kind, "step", None) or 0.0)
        return _rounded(kind, rng.uniform(low - margin, high + margin, count))


def _columns(kind: BaseDistribution) -> int:
    return len(kind.choices) if isinstance(kind, CategoricalDistribution) else 1


def _ends(kind: BaseDistribution) -> tuple[float, float]:
    assert isinstance(kind, FloatDistribution)
    return (math.log(kind.low), math.log(kind.high)) if kind.log else (kind.low, kind.high)


def _scaled(kind: BaseDistribution, values: Floats) -> Floats:
    return np.log(values) if isinstance(kind, FloatDistribution) and kind.log else values


def _rounded(kind: BaseDistribution, values: Floats) -> Floats:
    """Return values on the scale of `_ends` as Optuna has them, within bounds and on the steps."""
    assert isinstance(kind, FloatDistribution)
    if kind.log:
        return np.clip(np.exp(values), kind.low, kind.high)
    if kind.step:
        values = kind.low + np.round((values - kind.low) / kind.step) * kind.step
    return np.clip(values, kind.low, kind.high)
