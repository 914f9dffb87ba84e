from __future__ import annotations

import math

import optuna
import pytest

from harness.search.tpe import CostAwareTPESampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
DEPTHS = (0.0, 0.5, 1.0)


def history(sampler):
    """A study in which all freeze depths are equally good, and its next proposals."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {
        "freeze_depth": optuna.distributions.CategoricalDistribution(DEPTHS),
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    }
    for number in range(30):
        params = {"freeze_depth": DEPTHS[number % 3], "lr": 10 ** (-4 + 3 * (number * 7 % 30) / 30)}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=-abs(params["lr"] - 1e-2)
            )
        )
    return study


def proposals(make, count=25):
    found = []
    for seed in range(count):
        study = history(make(seed))
        trial = study.ask()
        found.append(
            (
                trial.suggest_categorical("freeze_depth", DEPTHS),
                trial.suggest_float("lr", 1e-4, 1e-1, log=True),
            )
        )
    return found


def cost(point):
    return 1.02 - point["freeze_depth"]


def sampler(seed, exponent):
    return CostAwareTPESampler(cost=cost, exponent=exponent, seed=seed, n_startup_trials=6)


def test_a_cost_without_weight_leaves_tpe_as_it_is():
    plain = proposals(lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=6))
    assert proposals(lambda seed: sampler(seed, 0.0)) == plain


def test_of_equally_promising_points_the_cheap_are_proposed_more_often():
    free = [depth for depth, _ in proposals(lambda seed: sampler(seed, 0.0))]
    weighed = [depth for depth, _ in proposals(lambda seed: sampler(seed, 1.0))]
    assert weighed.count(1.0) > free.count(1.0)
    assert weighed.count(0.0) < free.count(0.0)


def test_what_is_out_of_reach_is_proposed_only_where_everything_is():
    def make(seed, reach):
        def limited(point):
            return 1.0 if point["freeze_depth"] >= reach else math.inf

        return CostAwareTPESampler(cost=limited, exponent=0.0, seed=seed, n_startup_trials=6)

    assert {depth for depth, _ in proposals(lambda seed: make(seed, 0.5))} <= {0.5, 1.0}
    assert len(proposals(lambda seed: make(seed, 2.0), count=2)) == 2


def test_the_cost_of_each_candidate_is_asked_for_by_what_the_user_wrote():
    seen = []

    def watch(point):
        seen.append(point)
        return 1.0

    study = history(CostAwareTPESampler(cost=watch, exponent=1.0, seed=1, n_startup_trials=6))
    study.ask().suggest_categorical("freeze_depth", DEPTHS)
    assert {point["freeze_depth"] for point in seen} <= set(DEPTHS)
    assert all(1e-4 <= point["lr"] <= 1e-1 for point in seen)


def test_random_trials_come_first(monkeypatch):
    def fail(point):
        raise AssertionError("asked for a cost")

    study = optuna.create_study(
        sampler=CostAwareTPESampler(cost=fail, exponent=1.0, seed=0, n_startup_trials=6)
    )
    for _ in range(6):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("lr", 0, 1))
    with pytest.raises(AssertionError):
        study.ask().suggest_float("lr", 0, 1)
