from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from harness.search import gaussian
from harness.search.gp import CostAwareGPSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
DEPTHS = (0.0, 0.5, 1.0)
SPACE = {
    "backbone": CategoricalDistribution(("a", "b", "c")),
    "freeze_depth": FloatDistribution(0.0, 1.0, step=0.5),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
}


def worth(params):
    """Best at b, 0.5 and 1e-2."""
    return (
        0.9
        - 0.2 * (params["backbone"] != "b")
        - 0.2 * abs(params["freeze_depth"] - 0.5)
        - 0.1 * abs(math.log10(params["lr"]) + 2)
    )


def make(seed, *, cost=lambda point: 1.0, exponent=0.0, known=()):
    return CostAwareGPSampler(cost=cost, exponent=exponent, seed=seed, known=known)


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "backbone": str(rng.choice(["a", "b", "c"])),
            "freeze_depth": float(rng.choice(DEPTHS)),
            "lr": float(10 ** rng.uniform(-4, -1)),
        }
        for _ in range(count)
    ]


def history(sampler, points=None, value=worth):
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params in draw(12) if points is None else points:
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=value(params)))
    return study


def ask(study):
    trial = study.ask()
    return {
        "backbone": trial.suggest_categorical("backbone", ["a", "b", "c"]),
        "freeze_depth": trial.suggest_float("freeze_depth", 0.0, 1.0, step=0.5),
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
    }


def search(make_sampler, trials, seed):
    study = optuna.create_study(direction="maximize", sampler=make_sampler(seed))
    for params in draw(3, seed):
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=worth(params)))
    for number in range(trials):
        study.sampler = make_sampler(1000 * seed + number)
        trial = study.ask(SPACE)
        study.tell(trial, worth(trial.params))
    return study.best_value


def test_it_comes_closer_to_the_best_than_chance_and_tpe_do():
    gp = [search(make, 10, seed) for seed in range(4)]
    tpe = [search(lambda s: optuna.samplers.TPESampler(seed=s, n_startup_trials=3), 10, s) for s in range(4)]
    chance = [search(lambda s: optuna.samplers.RandomSampler(seed=s), 10, s) for s in range(4)]
    assert min(gp) > 0.85
    assert np.mean(gp) > max(np.mean(tpe), np.mean(chance))


def test_proposals_lie_in_the_space_and_on_its_steps_and_depend_on_the_seed_alone():
    for seed in range(5):
        point = ask(history(make(seed)))
        assert point["freeze_depth"] in DEPTHS
        assert 1e-4 <= point["lr"] <= 1e-1
        assert point == ask(history(make(seed)))


def test_of_equally_promising_points_the_cheap_are_proposed_more_often():
    def depths(exponent):
        cost = {"cost": lambda point: 1.02 - point["freeze_depth"], "exponent": exponent}
        studies = [history(make(seed, **cost), value=lambda p: -abs(p["lr"] - 1e-2)) for seed in range(12)]
        return [ask(study)["freeze_depth"] for study in studies]

    assert sum(depths(1.0)) > sum(depths(0.0)) + 1


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_what_is_out_of_reach_is_proposed_only_where_everything_is(exponent):
    def limited(reach):
        return lambda point: 1.0 if point["freeze_depth"] >= reach else math.inf

    for seed in range(6):
        proposed = ask(history(make(seed, cost=limited(1.0), exponent=exponent)))
        assert proposed["freeze_depth"] == 1.0
    assert ask(history(make(0, cost=limited(2.0), exponent=exponent)))["freeze_depth"] in DEPTHS


def test_a_trial_that_diverged_does_not_hide_what_tells_the_good_ones_apart():
    def value(params):
        return 0.0 if params["lr"] > 3e-2 else worth(params)

    found = [ask(history(make(seed), points=draw(20), value=value)) for seed in range(8)]
    assert sum(point["backbone"] == "b" for point in found) >= 6
    assert all(point["lr"] <= 3e-2 for point in found)


def test_trials_that_still_run_are_not_proposed_again():
    study = history(make(1))
    proposed = [ask(study) for _ in range(8)]
    assert sum(trial.state == TrialState.RUNNING for trial in study.get_trials()) == 8
    assert len({(p["backbone"], p["freeze_depth"], round(p["lr"], 6)) for p in proposed}) == 8


def test_a_point_that_was_tried_is_proposed_again_only_where_nothing_else_is_left():
    space = {"freeze_depth": FloatDistribution(0.0, 1.0, step=0.5)}
    study = optuna.create_study(direction="maximize", sampler=make(0))
    for depth, value in ((0.0, 0.9), (0.5, 0.5)):
        study.add_trial(
            optuna.trial.create_trial(params={"freeze_depth": depth}, distributions=space, value=value)
        )
    assert study.ask(space).params["freeze_depth"] == 1.0
    assert study.ask(space).params["freeze_depth"] in DEPTHS


def pruned(params, curve):
    return optuna.trial.create_trial(
        state=TrialState.PRUNED,
        params=params,
        distributions=SPACE,
        intermediate_values=dict(enumerate(curve, start=1)),
    )


def test_pruned_trials_count_with_their_last_score_where_nothing_went_on_and_failed_ones_not_at_all():
    study = history(make(0), points=[])
    for params in draw(12):
        study.add_trial(pruned(params, [0.99, worth(params)]))
    same = history(make(0))
    failed = optuna.trial.create_trial(state=TrialState.FAIL, params=draw(1)[0], distributions=SPACE)
    same.add_trial(failed)
    assert ask(study) == ask(same)


def test_the_early_score_of_a_pruned_trial_does_not_speak_against_what_learns_slowly_and_ends_well():
    def early(params):
        """The more trains, the slower."""
        return 0.2 + 0.5 * params["freeze_depth"]

    def value(params):
        return worth(params) - 0.5 * params["freeze_depth"]

    study = optuna.create_study(direction="maximize", sampler=make(0))
    for place, params in enumerate(draw(24, seed=4)):
        if place % 3:
            study.add_trial(pruned(params, [early(params)]))
        else:
            values = {1: early(params), 2: value(params)}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=SPACE, value=values[2], intermediate_values=values
                )
            )
    assert ask(study)["freeze_depth"] < 1.0


def test_a_proposal_after_thousands_of_trials_takes_no_more_than_one_after_hundreds(monkeypatch):
    sizes = []
    fit = gaussian.GaussianProcess.__init__

    def counted(self, inputs, *rest):
        sizes.append(len(inputs))
        fit(self, inputs, *rest)

    monkeypatch.setattr(gaussian.GaussianProcess, "__init__", counted)
    monkeypatch.setattr(gaussian, "MOST", 30)
    ask(history(make(0), draw(100)))
    assert max(sizes) == 30


def test_what_is_known_beside_the_trials_moves_the_proposals():
    points = [{"backbone": "a", "freeze_depth": 1.0, "lr": 1e-2}]
    known = [
        ({"backbone": name, "freeze_depth": 1.0, "lr": 1e-2}, score)
        for name, score in (("a", 0.2), ("b", 0.9), ("c", 0.2))
    ]
    found = [ask(history(make(seed, known=known), points, value=lambda p: 0.2)) for seed in range(8)]
    assert sum(point["backbone"] == "b" for point in found) >= 6


def test_without_a_score_it_draws():
    study = optuna.create_study(sampler=make(0))
    assert ask(study)["freeze_depth"] in DEPTHS
    # A whole point that is known teaches nothing of a space that no trial has shown.
    study = optuna.create_study(sampler=make(0, known=[({"backbone": "a"}, 0.5)]))
    assert ask(study)["freeze_depth"] in DEPTHS


def test_a_search_that_has_converged_looks_elsewhere_instead_of_training_the_same_again():
    rng = np.random.default_rng(5)
    study = history(make(0), points=draw(3))
    for number in range(22):
        study.sampler = make(100 + number)
        trial = study.ask(SPACE)
        study.tell(trial, worth(trial.params) + 0.02 * rng.normal())
    late = [trial.params for trial in study.get_trials()[-12:]]
    places = {(p["backbone"], p["freeze_depth"], round(math.log10(p["lr"]))) for p in late}
    assert len(places) >= 4
