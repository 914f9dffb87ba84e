from __future__ import annotations

import dataclasses
import json

import optuna
import pytest

from harness.errors import UsageError
from harness.search.space import Space, resolve_space


def test_unknown_names_are_said_together_with_the_nearest(tiny, registry):
    study = tiny(space={"backbone": ["tiny-nett", "wide-net"], "optimizer": ["adamv"]})
    with pytest.raises(UsageError) as caught:
        resolve_space(study, registry)
    assert "unknown backbone 'tiny-nett', did you mean 'tiny-net'?" in str(caught.value)
    assert "unknown optimizer 'adamv', did you mean" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_glob_is_expanded_once(tiny, registry):
    space = resolve_space(tiny(space={"backbone": "*-net"}), registry)
    backbones = next(axis for axis in space.axes if axis.name == "backbone").choices
    assert {"tiny-net", "wide-net"} <= set(backbones)
    assert not any("*" in name for name in backbones)


def test_a_space_survives_its_json_form(tiny, registry):
    space = resolve_space(tiny(), registry)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_an_automatic_learning_rate_stays_within_the_bounds_of_its_optimizer(tiny, registry):
    study = tiny(space={"optimizer": ["adamw", "sgd"]})
    space = resolve_space(study, registry)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for number in range(30):
        config = space.trial_config(study, space.suggest(sampler.ask()), seed=number)
        low, high = space.lr_bounds[config.optimizer]
        assert low <= config.lr <= high
        assert config.freeze_depth in (0.0, 0.5, 1.0)
        seen.add(config.optimizer)
    assert seen == {"adamw", "sgd"}


def test_an_explicit_learning_rate_range_is_searched_as_given(tiny, registry):
    study = tiny(space={"lr": {"low": 1e-3, "high": 1e-2, "log": True}})
    axis = next(axis for axis in resolve_space(study, registry).axes if axis.name == "lr")
    assert (axis.low, axis.high, axis.log) == (1e-3, 1e-2, True)


def test_evenly_spaced_numbers_keep_their_order_for_the_sampler(tiny, registry):
    axes = {axis.name: axis for axis in resolve_space(tiny(), registry).axes}
    assert axes["freeze_depth"].step == 0.5
    axes = {
        axis.name: axis for axis in resolve_space(tiny(space={"freeze_depth": [0, 0.1, 1]}), registry).axes
    }
    assert axes["freeze_depth"].choices == (0.0, 0.1, 1.0)
    assert axes["freeze_depth"].step is None


def test_evenly_spaced_numbers_come_back_as_the_user_wrote_them(tiny, registry):
    depths = [0.0, 1 / 3, 2 / 3, 1.0]
    space = resolve_space(tiny(space={"freeze_depth": depths}), registry)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {space.suggest(study.ask())["freeze_depth"] for _ in range(40)}
    assert seen == set(depths)


@pytest.mark.parametrize(
    ("asked", "depths"),
    [
        ([0.0, 0.5, 1.0], (0.0, 0.5, 1.0)),
        ({"low": 0.0, "high": 1.0, "step": 0.5}, (0.0, 0.5, 1.0)),
        ({"low": 0.0, "high": 1.0, "step": 0.01}, ()),
        ({"low": 0.0, "high": 1.0}, ()),
    ],
)
def test_trials_share_activations_where_freeze_depths_come_again(tiny, registry, asked, depths):
    space = resolve_space(tiny(space={"freeze_depth": asked}), registry)
    assert space.depths == depths
    assert space.sharing(30) == (30 / len(space.backbones) / len(depths) if depths else 1.0)


def test_a_grid_counts_its_points_and_refuses_what_is_continuous(tiny, registry):
    discrete = resolve_space(tiny(space={"lr": [1e-3, 1e-2], "optimizer": "adamw"}), registry)
    points = discrete.grid_points(seed=0)
    assert len(points) == len({tuple(point.items()) for point in points}) == 2 * 3 * 2
    assert points != discrete.grid_points(seed=1)
    continuous = resolve_space(tiny(), registry)
    with pytest.raises(UsageError, match=r"space\.lr"):
        continuous.grid_points(seed=0)


def test_configurations_that_differ_by_seed_alone_are_one_candidate(tiny, registry):
    study = tiny(space={"lr": 1e-3, "backbone": "tiny-net", "optimizer": "sgd", "freeze_depth": 0})
    config = resolve_space(study, registry).trial_config(
        study,
        {
            "backbone": "tiny-net",
            "freeze_depth": 0.0,
            "lr": 1e-3,
            "optimizer": "sgd",
            "augmentation": "none",
            "loss": "focal",
            "schedule": "cosine",
            "weight_decay": 0.0,
            "head_init": "timm",
        },
        seed=1,
    )
    assert config.image_size == 24
    assert config.digest() == dataclasses.replace(config, seed=2).digest()
    assert config.digest() != dataclasses.replace(config, lr=2e-3).digest()
