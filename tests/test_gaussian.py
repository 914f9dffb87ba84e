from __future__ import annotations

import numpy as np
import pytest

from harness.search.gaussian import (
    ENOUGH,
    MOST,
    GaussianProcess,
    draw_hyperparameters,
    standardize,
    thin,
)


def process(inputs, targets, axes=(0,), seed=0):
    inputs, targets = np.array(inputs), np.array(targets)
    draws = draw_hyperparameters(inputs, targets, axes, np.random.default_rng(seed))
    return GaussianProcess(inputs, targets, axes, draws)


def test_a_smooth_curve_is_interpolated_and_far_from_the_points_nothing_is_certain():
    x = np.linspace(0, 1, 12)[:, None]
    y = np.sin(4 * x[:, 0])
    model = process(x, (y - y.mean()) / y.std())
    between = np.array([[0.2], [0.5], [0.83]])
    wanted = (np.sin(4 * between[:, 0]) - y.mean()) / y.std()
    assert model.mean(between) == pytest.approx(wanted, abs=0.1)
    known, unknown = model.expected_improvement(np.array([[0.0], [50.0]]))
    assert known < 0.01 < unknown


def test_scores_that_scatter_are_averaged_not_followed():
    rng = np.random.default_rng(1)
    x = rng.random((60, 1))
    y = rng.normal(size=60)
    model = process(x, (y - y.mean()) / y.std())
    assert model.mean(x).std() < 0.5


def test_an_axis_that_does_not_matter_is_found_out():
    rng = np.random.default_rng(2)
    x = rng.random((40, 2))
    y = x[:, 0]
    model = process(x, (y - y.mean()) / y.std(), axes=(0, 1))
    low, high = model.mean(np.array([[0.5, 0.0], [0.5, 1.0]]))
    left, right = model.mean(np.array([[0.0, 0.5], [1.0, 0.5]]))
    assert abs(high - low) < 0.1 * (right - left)


def test_what_was_learnt_of_one_choice_is_expected_of_another_that_was_tried_once():
    rng = np.random.default_rng(4)
    # Two columns as `Box` encodes a choice; the second one is worse by 1 wherever it is tried.
    choices = np.eye(2)[[0] * 10 + [1]] / np.sqrt(2)
    others = np.concatenate([rng.random((10, 2)), np.zeros((1, 2))])
    y = others.sum(axis=1) - (choices[:, 1] > 0)
    model = process(np.column_stack([choices, others]), (y - y.mean()) / y.std(), axes=(0, 0, 1, 2))
    there = np.array([[0.0, 1 / np.sqrt(2), 0.9, 0.9]])
    assert model.mean(there)[0] == pytest.approx((0.8 - y.mean()) / y.std(), abs=1.0)


def test_improvement_is_never_negative_and_largest_where_good_or_unknown():
    x = np.array([[0.0], [0.1], [0.2], [0.3]])
    y = np.array([-1.3, -0.5, 0.5, 1.3])
    model = process(x, y)
    worst, best, beyond = model.expected_improvement(np.array([[0.0], [0.3], [0.45]]))
    assert 0 <= worst < best < beyond


def test_what_is_believed_is_no_news_to_the_mean_and_makes_its_place_less_promising():
    x = np.array([[0.0], [0.1], [0.2], [0.3]])
    model = process(x, np.array([-1.3, -0.5, 0.5, 1.3]))
    there = np.array([[0.6]])
    believed = model.believe(there)
    assert believed.mean(there) == pytest.approx(model.mean(there), abs=0.15)
    assert believed.expected_improvement(there)[0] < 0.5 * model.expected_improvement(there)[0]


def test_one_point_and_equal_scores_give_a_model_too():
    for targets in ([0.0], [0.0, 0.0, 0.0]):
        model = process(np.linspace(0, 1, len(targets))[:, None], targets)
        assert np.isfinite(model.expected_improvement(np.array([[0.4]]))).all()


def test_weights_add_up_and_of_many_points_some_are_enough_to_weigh_by():
    rng = np.random.default_rng(3)
    x = rng.random((3 * ENOUGH, 1))
    y = np.sin(5 * x[:, 0])
    y = (y - y.mean()) / y.std()
    draws = draw_hyperparameters(x, y, (0,), rng)
    assert sum(weight for weight, _ in draws) == pytest.approx(1)
    model = GaussianProcess(x, y, (0,), draws)
    assert model.mean(x[:50]) == pytest.approx(y[:50], abs=0.05)


def test_where_most_trials_tie_at_the_best_the_others_are_told_from_them():
    scores = np.array([0.9] * 6 + [0.3, 0.0])
    standardised = standardize(scores)[0]
    assert standardised[:6].min() > standardised[6] > standardised[7]


def test_of_too_many_scores_the_best_and_some_others_are_learnt_from():
    scores = np.random.default_rng(0).normal(size=2 * MOST)
    kept = thin(scores, np.random.default_rng(0))
    assert len({*kept.tolist()}) == MOST
    assert {*np.argsort(-scores)[: MOST // 2].tolist()} <= {*kept.tolist()}
    assert thin(scores[:MOST], np.random.default_rng(0)).tolist() == list(range(MOST))
