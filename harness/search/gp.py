"""A Gaussian process that weighs what a trial promises against what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.search.box import Box
from harness.search.foresight import foresee
from harness.search.gaussian import GaussianProcess, draw_hyperparameters, standardize, thin

Observation: TypeAlias = tuple[Mapping[str, Any], float]
"""Parameters of Optuna, and the score there."""

CANDIDATES = 500
"""Points from all over the space."""
BEST, NEIGHBOURS = 5, 20
"""How many of the best points get how many candidates near them."""


class CostAwareGPSampler(optuna.samplers.BaseSampler):
    """Proposes what has the largest expected improvement per unit of cost.

    The improvement is that over the best mean of the model at a point that was tried, for scores are noisy.
    It is averaged over hyperparameters that are drawn from their priors and weighed by their evidence (Snoek
    et al., NeurIPS 2012, section 3.1): after a handful of trials no single set is to be trusted. The exponent
    of the cost is for the caller to cool down (Lee et al., 2020). Trials that have not ended yet count as
    what the model expects of them (the Kriging believer of Ginsbourger et al., 2010), pruned ones as what
    they are foreseen to have come to: the score of a third of a training says little of the whole.

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
        told = [*_observe(box, trials)]
        told += [(params, score) for params, score in self._known if search_space.keys() <= params.keys()]
        seen = np.array([box.internal(params) for params, _ in told])
        scores = np.array([score for _, score in told])
        waiting = [box.internal(other.params) for other in trials if other.state == TrialState.RUNNING]
        kept = thin(scores, self._rng)
        inputs, targets = box.encode(seen[kept]), standardize(scores[kept])[0]
        draws = draw_hyperparameters(inputs, targets, box.axes, self._rng)
        model = GaussianProcess(inputs, targets, box.axes, draws)
        best = seen[kept][np.argsort(-model.mean(model.inputs), kind="stable")[:BEST]]
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


def _observe(box: Box, trials: Sequence[FrozenTrial]) -> Iterator[Observation]:
    """Yield what trials came to, or are foreseen to have come to."""
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ended = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.last_step is not None]
    yield from ((trial.params, trial.value) for trial in whole if trial.value is not None)
    for trial, foreseen in zip(ended, foresee(box, whole, ended), strict=True):
        assert trial.last_step is not None
        last = trial.intermediate_values[trial.last_step]
        yield trial.params, last if foreseen is None else foreseen
