"""Optuna's samplers and pruners, set up so that a resumed study proposes what an uninterrupted one would."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import SearchConfig

if TYPE_CHECKING:
    import optuna

MODELLED = ("tpe", "gp")
"""Samplers that learn from scores; the others propose the same whatever comes out."""
IMPORTED = "imported_from"
"""Attribute of Optuna's trials that are those of an earlier generation: whence."""
FAILED = 0.0
"""Score of a trial that failed."""
STARTUP_TRIALS = 6
"""Trials before TPE models the scores, and before the median pruner prunes."""


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """Return a seed of 31 bits for one trial, from the study's seed."""
    text = f"{seed}/{purpose}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1


def build_sampler(
    search: SearchConfig,
    seed: int,
    *,
    cost: Callable[[Mapping[str, Any]], float],
    exponent: float,
    known: Sequence[tuple[Mapping[str, Any], float]],
) -> optuna.samplers.BaseSampler:
    """Return a fresh sampler; one is built for each trial, so that it depends on the history alone.

    Args:
        search: Which one.
        seed: Of this trial's proposal.
        cost: Parameters -> predicted cost, which GP and TPE weigh.
        exponent: Of the cost; 0 ignores it.
        known: Parameters and scores that are no trials, which GP learns from.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A grid's points are enqueued by the study: there is nothing left to sample.
        if search.sampler in ("random", "grid"):
            return optuna.samplers.RandomSampler(seed=seed)
        if search.sampler == "gp":
            from harness.search.gp import CostAwareGPSampler

            return CostAwareGPSampler(cost=cost, exponent=exponent, seed=seed, known=known)
        from harness.search.tpe import CostAwareTPESampler

        return CostAwareTPESampler(
            cost=cost,
            exponent=exponent,
            seed=seed,
            n_startup_trials=STARTUP_TRIALS,
        )


def build_pruner(search: SearchConfig, epochs: int, finalists: int) -> optuna.pruners.BasePruner:
    """Return the pruner; its resource is the epoch."""
    import optuna

    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    if search.pruner == "hyperband":
        from harness.search.halving import PreparedHyperbandPruner

        return PreparedHyperbandPruner(epochs=epochs, reduction_factor=3)
    if search.pruner == "halving":
        from harness.search.halving import PeerHalvingPruner

        return PeerHalvingPruner(epochs=epochs, min_resource=3, reduction_factor=3, backbones=finalists)
    # Judged from the third epoch on, or a third of the way: before it, slow learners look like bad ones.
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=max(3, epochs // 3))
