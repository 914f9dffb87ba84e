"""TPE that weighs what a trial promises against what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

GAMMA = 0.1
"""Share of the trials that TPE counts as good."""


class CostAwareTPESampler(optuna.samplers.TPESampler):
    """Proposes what has the largest expected improvement per unit of cost.

    TPE's expected improvement is a monotone function of the ratio of its two densities (Bergstra et al.,
    NeurIPS 2011, eq. 11), which alone would do for comparing candidates of equal cost; divided by cost it is
    needed itself (Snoek et al., NeurIPS 2012). The exponent of the cost is for the caller to cool down, as
    the search learns which costs are worth it (Lee et al., 2020).

    Args:
        cost: Parameters of Optuna, of those that vary -> a positive cost; infinite where a candidate is out
            of reach, which is proposed only if all are.
        exponent: Of the cost; 0 ignores it.
        seed: Of the sampler.
        n_startup_trials: Random ones before the model.
    """

    def __init__(
        self,
        *,
        cost: Callable[[Mapping[str, Any]], float],
        exponent: float,
        seed: int,
        n_startup_trials: int,
    ) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup_trials)
        self._cost = cost
        self._exponent = exponent
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {}

    def _sample(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, optuna.distributions.BaseDistribution],
    ) -> dict[str, Any]:
        self._distributions = search_space
        return super()._sample(study, trial, search_space)

    def _compute_acquisition_func(
        self, samples: dict[str, npt.NDArray[np.float64]], mpe_below: Any, mpe_above: Any
    ) -> npt.NDArray[np.float64]:
        ratio = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        improvement = -np.logaddexp(np.log(GAMMA), np.log1p(-GAMMA) - ratio)
        columns = {
            name: [self._distributions[name].to_external_repr(value) for value in values]
            for name, values in samples.items()
        }
        points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        costs = np.array([self._cost(point) for point in points])
        weighed = improvement - self._exponent * np.log(np.where(np.isinf(costs), 1.0, costs))
        return np.where(np.isinf(costs), -np.inf, weighed)
