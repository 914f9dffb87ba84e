from __future__ import annotations

import pytest

from harness.records import ProbeRecord
from harness.search.opening import count_opening, observe_probes, plan_opening
from harness.search.space import Axis, Space

LR = Axis(name="lr", low=1e-4, high=1e-2, log=True)
DEPTHS = Axis(name="freeze_depth", choices=(0.0, 0.25, 0.5, 0.75, 1.0), low=0.0, high=1.0, step=0.25)


def probed(**f1):
    return [
        ProbeRecord(
            backbone=name, ridge_f1=value, ridge_accuracy=0, knn_f1=value / 2, knn_accuracy=0, seconds=1
        )
        for name, value in f1.items()
    ]


def space(*, backbones=("a", "b", "c"), depth=DEPTHS, lr=LR, optimizers=("adamw", "sgd")):
    axes = (
        Axis(name="backbone", choices=backbones),
        depth,
        lr,
        Axis(name="optimizer", choices=optimizers),
        Axis(name="loss", choices=("cross-entropy", "focal")),
    )
    return Space(axes=axes, lr_bounds={}, image_sizes={})


def test_each_backbone_is_tried_and_the_best_probed_one_at_the_ends_and_with_the_other_optimizers():
    points = plan_opening(space(), probed(a=0.2, b=0.9, c=0.5), "f1", 6)
    assert [(p["backbone"], p["freeze_depth"], p["optimizer"]) for p in points] == [
        ("b", 0.25, "adamw"),
        ("c", 0.25, "adamw"),
        ("a", 0.25, "adamw"),
        ("b", 1.0, "adamw"),
        ("b", 0.0, "adamw"),
        ("b", 0.25, "sgd"),
    ]
    assert all(p["lr"] == pytest.approx(1e-3) for p in points)
    assert all("loss" not in p for p in points)


def test_no_backbone_is_dropped_for_a_probe_that_is_bad_or_failed_or_was_not_made():
    for probes in ([ProbeRecord.failed("a", "crash"), *probed(b=0.0, c=0.4)], []):
        points = plan_opening(space(), probes, "f1", 3)
        assert {p["backbone"] for p in points} == {"a", "b", "c"}


def test_an_axis_of_one_value_is_no_parameter():
    (point,) = plan_opening(
        space(
            backbones=("a",),
            depth=Axis(name="freeze_depth", choices=(0.5,)),
            lr=Axis(name="lr", choices=(1e-3,)),
            optimizers=("adamw",),
        ),
        [],
        "f1",
        6,
    )
    assert point == {}


def test_the_parts_of_an_interval_lie_on_its_steps():
    depth = Axis(name="freeze_depth", low=0.0, high=0.9, step=0.2)
    points = plan_opening(space(depth=depth, lr=Axis(name="lr_position", low=0.0, high=1.0)), [], "f1", 6)
    assert [p["freeze_depth"] for p in points] == pytest.approx([0.2, 0.2, 0.2, 0.8, 0.0, 0.2])
    assert {p["lr_position"] for p in points} == {0.5}


@pytest.mark.parametrize(("sampler", "few", "many"), [("gp", 3, 8), ("tpe", 6, 10)])
def test_an_opening_has_a_trial_for_each_backbone_and_some_for_the_sampler(sampler, few, many):
    assert count_opening(space(backbones=("a",)), sampler) == few
    assert count_opening(space(backbones=tuple("abcdefgh")), sampler) == many


def test_many_optimizers_do_not_make_an_endless_opening():
    many = space(optimizers=tuple(f"o{number}" for number in range(50)))
    assert len(plan_opening(many, [], "f1", 6)) == 6


def test_a_probe_stands_for_a_trial_of_the_head_alone():
    probes = [*probed(a=0.2, b=0.9), ProbeRecord.failed("c", "crash")]
    assert observe_probes(space(), probes, "f1") == [
        (
            {
                "backbone": name,
                "freeze_depth": 1.0,
                "lr": pytest.approx(1e-3),
                "optimizer": "adamw",
                "loss": "cross-entropy",
            },
            f1,
        )
        for name, f1 in (("a", 0.2), ("b", 0.9))
    ]


def test_probes_say_nothing_of_a_space_in_which_no_head_trains_alone():
    for depth in (
        Axis(name="freeze_depth", choices=(0.0, 0.5)),
        Axis(name="freeze_depth", low=0.0, high=0.9, step=0.2),
        Axis(name="freeze_depth", choices=(0.25,)),
    ):
        assert observe_probes(space(depth=depth), probed(a=0.2), "f1") == []


def test_where_only_heads_train_a_probe_has_no_freeze_depth_to_name():
    ((point, _),) = observe_probes(
        space(depth=Axis(name="freeze_depth", choices=(1.0,))), probed(a=0.2), "f1"
    )
    assert "freeze_depth" not in point
