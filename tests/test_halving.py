from __future__ import annotations

import optuna
import pytest

from harness.search.halving import PeerHalvingPruner

optuna.logging.set_verbosity(optuna.logging.ERROR)


def halving(epochs, min_resource=3, backbones=0):
    pruner = PeerHalvingPruner(
        epochs=epochs, min_resource=min_resource, reduction_factor=3, backbones=backbones
    )
    return optuna.create_study(direction="maximize", pruner=pruner)


@pytest.fixture
def study():
    return halving(epochs=9)


def judge(study, depth, values, backbone=None):
    """Run a trial; return the epoch at which it was pruned, or None."""
    study.enqueue_trial({"freeze_depth": depth, "backbone": backbone})
    trial = study.ask()
    trial.suggest_float("freeze_depth", 0.0, 1.0)
    if backbone:
        trial.suggest_categorical("backbone", ["good", "fair", "poor"])
    return finish(study, trial, values)


def finish(study, trial, values):
    for epoch, value in enumerate(values, start=1):
        trial.report(value, step=epoch)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return epoch
    study.tell(trial, values[-1])
    return None


def test_a_slow_starter_is_not_judged_by_trials_that_freeze_more(study):
    for score in (0.80, 0.82, 0.81):
        judge(study, 1.0, [score] * 5)
    assert judge(study, 0.0, [0.1, 0.3, 0.5, 0.7, 0.9]) is None


def test_of_its_peers_a_third_goes_on(study):
    assert judge(study, 0.0, [0.5] * 5) is None
    assert judge(study, 0.1, [0.4] * 5) == 3
    assert judge(study, 0.0, [0.6] * 5) is None
    assert judge(study, 0.25, [0.1] * 5) is None, "the first of its kind"


def test_one_depth_is_no_parameter_and_all_are_peers():
    study = halving(epochs=3, min_resource=1)
    first, second = study.ask(), study.ask()
    first.report(0.5, step=1)
    assert not first.should_prune()
    second.report(0.4, step=1)
    assert second.should_prune()


def test_a_rung_lies_at_least_a_third_below_the_whole_training(study):
    short, long = halving(epochs=8), halving(epochs=27)
    for each in (short, study, long):
        judge(each, 0.0, [0.5] * 9)
    assert judge(short, 0.0, [0.1] * 8) is None
    assert judge(study, 0.0, [0.1] * 9) == 3
    assert judge(study, 0.0, [0.6] * 3 + [0.1] * 6) is None, (
        "nothing is to be saved after nine epochs of nine"
    )
    assert judge(long, 0.0, [0.6] * 3 + [0.1] * 24) == 9


def test_what_an_earlier_generation_trained_spares_nobody_and_takes_nobodys_place():
    study = halving(epochs=9, backbones=2)
    for backbone in ("good", "fair"):
        judge(study, 0.0, [0.5] * 9, backbone)
    generation = halving(epochs=9, backbones=2)
    for trial in study.trials:
        trial.user_attrs = {"imported_from": "before"}
        generation.add_trial(trial)
    assert judge(generation, 0.0, [0.4] * 9, "poor") is None
    assert judge(generation, 0.0, [0.3] * 9, "good") is None
    assert judge(generation, 0.0, [0.2] * 9, "fair") == 3


def test_as_many_backbones_as_there_are_finalists_come_to_their_end():
    study = halving(epochs=9, backbones=2)
    assert judge(study, 0.0, [0.9] * 9, "good") is None
    assert judge(study, 0.0, [0.5] * 9, "fair") is None, "the first of its backbone"
    assert judge(study, 0.0, [0.6] * 9, "fair") == 3
    assert judge(study, 0.0, [0.4] * 9, "poor") == 3, "two have come to their end"


def test_a_trial_that_is_behind_goes_on_where_it_is_foreseen_to_end_among_the_best():
    study = halving(epochs=9)

    def run(optimizer, lr, values):
        study.enqueue_trial({"optimizer": optimizer, "lr": lr})
        trial = study.ask()
        trial.suggest_categorical("optimizer", ["adamw", "sgd"])
        trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        return finish(study, trial, values)

    def slow(luck):
        return [0.6 + luck] * 3 + [0.95 + luck / 4] * 6

    for place in range(3):
        assert run("adamw", 10 ** (-2 + place / 5), slow(0.01 * place)) is None
    for place in range(8):
        assert run("sgd", 10 ** (-2 + place / 9), [0.8 + 0.005 * place] * 9) is None
    assert run("adamw", 1.2e-2, slow(0.01)) is None
    assert run("sgd", 1.2e-2, [0.75] * 9) == 3
