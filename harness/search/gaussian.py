"""Gaussian process regression on few points, with nothing to tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.special import ndtr

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS = 128
"""Sets of hyperparameters that a prediction averages over."""
_IGNORED = 1e-3
"""Weight below which a draw does not count."""


class GaussianProcess:
    """Regression with a Matern kernel of smoothness 5/2, a length for each axis, and noise.

    Args:
        inputs: (N, columns), as `_Box` encodes them.
        targets: (N,), of mean 0 and deviation 1.
        axes: The axis of each column; the columns of an axis share its length.
        rng: Draws the hyperparameters.
    """

    def __init__(
        self, inputs: Floats, targets: Floats, axes: Sequence[int], rng: np.random.Generator
    ) -> None:
        self.inputs = inputs
        self._targets = targets
        self._axes = tuple(axes)
        self._rng = rng
        distances = self._distances(inputs)
        count = max(self._axes) + 1
        lengths = np.exp(rng.normal(math.log(0.65), 0.6, (DRAWS, count)))
        noises = np.exp(rng.normal(math.log(0.1), 1.0, DRAWS))
        draws = [_Draw.fit(distances, targets, *drawn) for drawn in zip(lengths, noises, strict=True)]
        top = max(draw.evidence for draw in draws)
        weights = [math.exp(draw.evidence - top) for draw in draws]
        self._draws = [
            (weight / sum(weights), draw)
            for weight, draw in zip(weights, draws, strict=True)
            if weight > _IGNORED * sum(weights)
        ]

    def believe(self, inputs: Floats) -> GaussianProcess:
        """Return a model that takes its mean at some points for what was seen there."""
        known = np.concatenate([self.inputs, inputs])
        targets = np.concatenate([self._targets, self.mean(inputs)])
        return GaussianProcess(known, targets, self._axes, self._rng)

    def mean(self, inputs: Floats) -> Floats:
        """Return what is expected at (M, columns) points."""
        distances = self._distances(self.inputs, inputs)
        total = sum(weight for weight, _ in self._draws)
        means = [weight * draw.predict(distances)[0] for weight, draw in self._draws]
        return cast(Floats, np.sum(means, axis=0) / total)

    def expected_improvement(self, inputs: Floats) -> Floats:
        """Return by how much points are expected to be above the best mean at a point that was seen."""
        best = self.mean(self.inputs).max()
        distances = self._distances(self.inputs, inputs)
        expected = np.zeros(len(inputs))
        for weight, draw in self._draws:
            mean, deviation = draw.predict(distances)
            z = (mean - best) / deviation
            expected += weight * deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
        return np.maximum(expected, 0.0)

    def _distances(self, first: Floats, second: Floats | None = None) -> Floats:
        """Return the squared distances (axes, N, M) along each axis."""
        second = first if second is None else second
        squares = np.zeros((max(self._axes) + 1, len(first), len(second)))
        for column, axis in enumerate(self._axes):
            squares[axis] += (first[:, None, column] - second[None, :, column]) ** 2
        return squares


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """A Gaussian process of given hyperparameters; its scale and its mean are integrated out."""

    lengths: Floats
    factor: Floats
    """Lower Cholesky factor of the kernel matrix with noise, relative to the scale."""
    residuals: Floats
    """What is left of the targets once the mean is off, whitened."""
    mean: float
    variance: float
    evidence: float
    """Logarithm of the probability of the targets, up to a constant."""

    @staticmethod
    def fit(distances: Floats, targets: Floats, lengths: Floats, noise: float) -> _Draw:
        count = len(targets)
        factor = cholesky(_matern(distances, lengths) + (noise**2 + 1e-8) * np.eye(count), lower=True)
        ones, values = solve_triangular(factor, np.stack([np.ones(count), targets], axis=1), lower=True).T
        # Priors: a normal one of deviation 1 on the mean, an inverse gamma one about 1 on the scale.
        mean = float(ones @ values / (ones @ ones + 1))
        residuals = values - mean * ones
        variance = float((residuals @ residuals + 2) / (count + 2))
        evidence = -0.5 * (count * math.log(variance) + mean**2) - float(np.log(np.diag(factor)).sum())
        return _Draw(
            lengths=lengths,
            factor=factor,
            residuals=residuals,
            mean=mean,
            variance=variance,
            evidence=evidence,
        )

    def predict(self, distances: Floats) -> tuple[Floats, Floats]:
        """Return mean and deviation (M,) at points that are (axes, N, M) squared distances away."""
        whitened = solve_triangular(self.factor, _matern(distances, self.lengths), lower=True)
        left = np.maximum(1 - (whitened**2).sum(axis=0), 1e-9)
        return self.mean + whitened.T @ self.residuals, np.sqrt(self.variance * left)


def _matern(distances: Floats, lengths: Floats) -> Floats:
    scaled = np.sqrt(5 * np.tensordot(lengths**-2, distances, 1))
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
