"""A Gaussian process that weighs what a trial promises against what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.search.gaussian import Floats, GaussianProcess, draw_hyperparameters

Observation: TypeAlias = tuple[Mapping[str, Any], float]
"""Parameters of Optuna, and the score there."""

CANDIDATES = 500
"""Points from all over the space."""
BEST, NEIGHBOURS = 5, 20
"""How many of the best points get how many candidates near them."""
REACH = 2.0
"""A score further below the median than so many times the distance from there to the best is as good as that:
a trial that diverged must not stretch the scale on which the good ones differ."""


class CostAwareGPSampler(optuna.samplers.BaseSampler):
    """Proposes what has the largest expected improvement per unit of cost.

    The improvement is that over the best mean of the model at a point that was tried, for scores are noisy.
    It is averaged over hyperparameters that are drawn from their priors and weighed by their evidence (Snoek
    et al., NeurIPS 2012, section 3.1): after a handful of trials no single set is to be trusted. The exponent
    of the cost is for the caller to cool down (Lee et al., 2020). Trials that have not ended yet count as
    what the model expects of them (the Kriging believer of Ginsbourger et al., 2010); pruned ones as the last
    score that they reported.

    Args:
        cost: Parameters of Optuna, of those that vary -> a positive cost; infinite where a candidate is out
            of reach, which is proposed only if all are.
        exponent: Of the cost; 0 ignores it.
        seed: Of the sampler.
        known: What is known beside the trials.
    """

    def __init__(
        self,
        *,
        cost: Callable[[Mapping[str, Any]], float],
        exponent: float,
        seed: int,
        known: Sequence[Observation] = (),
    ) -> None:
        self._cost = cost
        self._exponent = exponent
        self._known = known
        self._rng = np.random.default_rng(seed)
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all trials with a score have."""
        trials = study.get_trials(deepcopy=False)
        return optuna.search_space.intersection_search_space(trials, include_pruned=True)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a point."""
        if not search_space:
            return {}
        box = Box(search_space)
        trials = [
            other for other in study.get_trials(deepcopy=False) if search_space.keys() <= other.params.keys()
        ]
        told: list[Observation] = [
            (other.params, score) for other in trials if (score := _score(other)) is not None
        ]
        told += [(params, score) for params, score in self._known if search_space.keys() <= params.keys()]
        seen = np.array([box.internal(params) for params, _ in told])
        scores = np.array([score for _, score in told])
        waiting = [box.internal(other.params) for other in trials if other.state == TrialState.RUNNING]
        inputs, targets = box.encode(seen), _standardize(scores)
        draws = draw_hyperparameters(inputs, targets, box.axes, self._rng)
        model = GaussianProcess(inputs, targets, box.axes, draws)
        best = seen[np.argsort(-model.mean(model.inputs), kind="stable")[:BEST]]
        if waiting:
            model = model.believe(box.encode(np.array(waiting)))
        candidates = np.concatenate(
            [box.draw(CANDIDATES, self._rng), box.near(np.repeat(best, NEIGHBOURS, axis=0), self._rng)]
        )
        points = [box.external(candidate) for candidate in candidates]
        costs = np.array([self._cost(point) for point in points])
        within_reach = np.isfinite(costs)
        tried = {tuple(point) for point in [*seen.tolist(), *waiting]}
        is_new = np.array([tuple(candidate) not in tried for candidate in candidates.tolist()])
        promise = model.expected_improvement(box.encode(candidates))
        promise /= np.where(within_reach, costs, 1.0) ** self._exponent
        for allowed in (within_reach & is_new, within_reach):
            if allowed.any():
                promise[~allowed] = -1.0
                break
        return points[int(np.argmax(promise))]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter where there is nothing to learn from."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _score(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.COMPLETE:
        return trial.value
    if trial.state == TrialState.PRUNED and trial.last_step is not None:
        return trial.intermediate_values[trial.last_step]
    return None


def _standardize(scores: Floats) -> Floats:
    """Return scores of mean 0 and deviation 1, the far too low ones raised."""
    median = np.median(scores)
    reach = REACH * (scores.max() - median)
    # Where most are as good as the best there is no such distance, and the others are to be told from them.
    raised = np.maximum(scores, median - reach) if len(scores) > 2 and reach > 0 else scores
    return cast(Floats, (raised - raised.mean()) / (raised.std() or 1.0))


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
