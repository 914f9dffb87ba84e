"""Gaussian process regression on few points, with nothing to tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.special import ndtr

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS = 128
"""Sets of hyperparameters that a prediction averages over."""
IGNORED = 1e-2
"""Weight, relative to the largest, below which a draw does not count."""
ENOUGH = 100
"""Points that tell the hyperparameters apart; more would only take longer."""
MOST = 400
"""Points that a model learns from: its time grows with their cube."""
REACH = 2.0
"""A score further below the median than so many times the distance from there to the best is as good as that:
a trial that diverged must not stretch the scale on which the good ones differ."""


class Hyper(NamedTuple):
    """What a Gaussian process takes for given."""

    lengths: Floats
    """(axes,): the distance along each at which scores have little to do with one another."""
    apart: float
    """Share, from 0 to 1, of the variance that axes account for each on its own."""
    noise: float
    """Deviation of what is seen about what is there, relative to the scale."""


def draw_hyperparameters(
    inputs: Floats, targets: Floats, axes: Sequence[int], rng: np.random.Generator
) -> list[tuple[float, Hyper]]:
    """Draw hyperparameters from their priors and weigh them by their evidence.

    Args:
        inputs: (N, columns).
        targets: (N,), of mean 0 and deviation 1.
        axes: The axis of each column.
        rng: Draws.

    Returns:
        Those that count, with weights that add up to 1.
    """
    if len(targets) > ENOUGH:
        some = rng.choice(len(targets), ENOUGH, replace=False)
        inputs, targets = inputs[some], targets[some]
    distances = _distances(inputs, inputs, axes)
    lengths = np.exp(rng.normal(math.log(0.65), 0.6, (DRAWS, max(axes) + 1)))
    apart = rng.uniform(0.0, 1.0, DRAWS)
    noises = np.exp(rng.normal(math.log(0.1), 1.0, DRAWS))
    hypers = [Hyper(*values) for values in zip(lengths, apart.tolist(), noises.tolist(), strict=True)]
    evidence = np.array([_Conditioned.fit(distances, targets, hyper).evidence for hyper in hypers])
    weights = np.exp(evidence - evidence.max())
    weights[weights < IGNORED] = 0.0
    weights /= weights.sum()
    return [(weight, hyper) for weight, hyper in zip(weights.tolist(), hypers, strict=True) if weight]


def standardize(scores: Floats) -> tuple[Floats, float, float]:
    """Return scores of mean 0 and deviation 1, the far too low ones raised, with that mean and deviation."""
    median = np.median(scores)
    reach = REACH * (scores.max() - median)
    # Where most are as good as the best there is no such distance, and the others are to be told from them.
    raised = np.maximum(scores, median - reach) if len(scores) > 2 and reach > 0 else scores
    middle, spread = float(raised.mean()), float(raised.std()) or 1.0
    return (raised - middle) / spread, middle, spread


def thin(scores: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the places of the scores to learn from: all, or the best and some of the others."""
    order = np.argsort(-scores, kind="stable")
    if len(order) > MOST:
        best, others = np.split(order, [MOST // 2])
        order = np.concatenate([best, rng.choice(others, MOST - len(best), replace=False)])
    return np.sort(order)


class GaussianProcess:
    """Regression with noise; each axis has a Matern kernel of smoothness 5/2 and a length of its own.

    Part of the variance is a sum over axes (Duvenaud et al., NeurIPS 2011), the rest a product of them all.
    Settings count for much each on its own (Hutter et al., ICML 2014): with the product alone, a backbone
    that is bad at one learning rate would have to be tried at all of them.

    Args:
        inputs: (N, columns).
        targets: (N,), of mean 0 and deviation 1.
        axes: The axis of each column; the columns of an axis share its length.
        draws: Hyperparameters with their weights, as `draw_hyperparameters` returns them.
    """

    def __init__(
        self, inputs: Floats, targets: Floats, axes: Sequence[int], draws: Sequence[tuple[float, Hyper]]
    ) -> None:
        self.inputs = inputs
        self._targets = targets
        self._axes = tuple(axes)
        self._hypers = draws
        distances = _distances(inputs, inputs, axes)
        self._draws = [(weight, _Conditioned.fit(distances, targets, hyper)) for weight, hyper in draws]

    def believe(self, inputs: Floats) -> GaussianProcess:
        """Return a model that takes its mean at some points for what was seen there."""
        known = np.concatenate([self.inputs, inputs])
        targets = np.concatenate([self._targets, self.mean(inputs)])
        return GaussianProcess(known, targets, self._axes, self._hypers)

    def mean(self, inputs: Floats) -> Floats:
        """Return what is expected at (M, columns) points."""
        distances = _distances(self.inputs, inputs, self._axes)
        means = [weight * draw.predict(distances)[0] for weight, draw in self._draws]
        return cast(Floats, np.sum(means, axis=0))

    def expected_improvement(self, inputs: Floats) -> Floats:
        """Return by how much points are expected to be above the best mean at a point that was seen.

        Augmented (Huang et al., 2006): the less there is left to learn at a point, by the measure of the
        noise, the less its improvement counts. Else a search would train the same again and again in the end.
        """
        best = self.mean(self.inputs).max()
        distances = _distances(self.inputs, inputs, self._axes)
        expected = np.zeros(len(inputs))
        for weight, draw in self._draws:
            mean, deviation = draw.predict(distances)
            z = (mean - best) / deviation
            gain = deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
            news = 1 - draw.noise / np.hypot(deviation, draw.noise)
            expected += weight * np.maximum(gain, 0.0) * news
        return expected


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conditioned:
    """A Gaussian process of given hyperparameters; its scale and its mean are integrated out."""

    hyper: Hyper
    factor: Floats
    """Lower Cholesky factor of the kernel matrix with noise, relative to the scale."""
    residuals: Floats
    """What is left of the targets once the mean is off, whitened."""
    mean: float
    variance: float
    noise: float
    """Deviation of what is seen about what is there."""
    evidence: float
    """Logarithm of the probability of the targets, up to a constant."""

    @staticmethod
    def fit(distances: Floats, targets: Floats, hyper: Hyper) -> _Conditioned:
        count = len(targets)
        factor = cholesky(_kernel(distances, hyper) + (hyper.noise**2 + 1e-8) * np.eye(count), lower=True)
        ones, values = solve_triangular(factor, np.stack([np.ones(count), targets], axis=1), lower=True).T
        # Priors: a normal one of deviation 1 on the mean, an inverse gamma one about 1 on the scale.
        mean = float(ones @ values / (ones @ ones + 1))
        residuals = values - mean * ones
        variance = float((residuals @ residuals + 2) / (count + 2))
        evidence = -0.5 * (count * math.log(variance) + mean**2) - float(np.log(np.diag(factor)).sum())
        return _Conditioned(
            hyper=hyper,
            factor=factor,
            residuals=residuals,
            mean=mean,
            variance=variance,
            noise=hyper.noise * math.sqrt(variance),
            evidence=evidence,
        )

    def predict(self, distances: Floats) -> tuple[Floats, Floats]:
        """Return mean and deviation (M,) at points that are (axes, N, M) distances away."""
        whitened = solve_triangular(self.factor, _kernel(distances, self.hyper), lower=True)
        left = np.maximum(1 - (whitened**2).sum(axis=0), 1e-9)
        return self.mean + whitened.T @ self.residuals, np.sqrt(self.variance * left)


def _distances(first: Floats, second: Floats, axes: Sequence[int]) -> Floats:
    """Return the distances (axes, N, M) along each axis."""
    squares = np.zeros((max(axes) + 1, len(first), len(second)))
    for column, axis in enumerate(axes):
        squares[axis] += (first[:, None, column] - second[None, :, column]) ** 2
    return np.sqrt(squares)


def _kernel(distances: Floats, hyper: Hyper) -> Floats:
    """Return covariances (N, M), relative to the scale, of points that are (axes, N, M) distances apart."""
    product, total = np.ones(distances.shape[1:]), np.zeros(distances.shape[1:])
    # Axis by axis: together they would not fit into a cache.
    for along, length in zip(distances, hyper.lengths, strict=True):
        scaled = (math.sqrt(5) / length) * along
        covariances = (1 + scaled * (1 + scaled / 3)) * np.exp(-scaled)
        product *= covariances
        total += covariances
    return (1 - hyper.apart) * product + (hyper.apart / len(distances)) * total
