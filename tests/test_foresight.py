from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from harness.search.box import Box
from harness.search.foresight import FEWEST, foresee

SPACE = {
    "lr": FloatDistribution(1e-3, 1e-1, log=True),
    "optimizer": CategoricalDistribution(("adamw", "sgd")),
}
BOX = Box(SPACE)


def trial(lr, optimizer, curve, state=TrialState.PRUNED):
    return optuna.trial.create_trial(
        state=state,
        params={"lr": lr, "optimizer": optimizer},
        distributions=SPACE,
        intermediate_values=dict(enumerate(curve, start=1)),
        value=curve[-1] if state == TrialState.COMPLETE else None,
    )


def whole(lr, optimizer, curve):
    return trial(lr, optimizer, curve, TrialState.COMPLETE)


def curve(optimizer, luck):
    """SGD is ahead after an epoch, AdamW at the end."""
    first, last = (0.8, 0.82) if optimizer == "sgd" else (0.6, 0.95)
    return [first + luck, last + luck / 4]


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    points = [(10 ** rng.uniform(-3, -1), optimizer) for optimizer in ("adamw", "sgd") for _ in range(5)]
    return [whole(lr, optimizer, curve(optimizer, rng.normal(0, 0.03))) for lr, optimizer in points]


def test_a_slow_starter_is_foreseen_to_end_where_those_like_it_did(known):
    slow, fast = foresee(BOX, known, [trial(1e-2, "adamw", [0.6]), trial(1e-2, "sgd", [0.8])])
    assert slow == pytest.approx(0.95, abs=0.02)
    assert fast == pytest.approx(0.82, abs=0.02)


def test_of_trials_alike_the_one_that_is_ahead_is_foreseen_to_end_ahead():
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.3, 0.8, 12)
    known = [whole(1e-2, "adamw", [score, 0.5 + score / 2]) for score in scores]
    behind, ahead = foresee(BOX, known, [trial(1e-2, "adamw", [0.4]), trial(1e-2, "adamw", [0.7])])
    assert behind == pytest.approx(0.7, abs=0.03)
    assert ahead == pytest.approx(0.85, abs=0.03)


def test_nothing_is_foreseen_of_what_failed_or_where_too_few_went_on(known):
    early, late = trial(1e-2, "adamw", [0.6]), trial(1e-2, "adamw", [0.6] * 3)
    assert foresee(BOX, known[: FEWEST - 1], [early]) == [None]
    forecasts = foresee(BOX, known, [trial(1e-2, "sgd", [0.0]), early, late])
    assert [forecast is None for forecast in forecasts] == [True, False, True]


def test_the_same_trials_are_foreseen_alike(known):
    ended = [trial(2e-2, "sgd", [0.7])]
    assert foresee(BOX, known, ended) == foresee(BOX, known, ended)
