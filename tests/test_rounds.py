from __future__ import annotations

import pytest
from records_factory import make_config

from harness.records import ProbeRecord
from harness.search.rounds import Rounds, allocate, order


def probed(**f1):
    return [
        ProbeRecord(
            backbone=name, ridge_f1=value, ridge_accuracy=0, knn_f1=value / 2, knn_accuracy=0, seconds=1
        )
        for name, value in f1.items()
    ]


@pytest.mark.parametrize(
    ("number", "bounds"),
    [(3, (3, 8)), (7, (3, 8)), (8, (8, 10)), (9, (8, 10)), (10, (10, 12)), (31, (30, 32))],
)
def test_every_trial_belongs_to_one_round(number, bounds):
    assert Rounds(start=3, first=5, size=2).bounds(number) == bounds


def test_the_first_trials_go_to_each_backbone_once_and_to_the_better_ones_again():
    names = ["a", "b", "c"]
    assert allocate(names, probed(a=0.2, b=0.9, c=0.5), 6, "f1") == ["b", "c", "a", "b", "c", "b"]


def test_no_backbone_is_dropped_for_a_probe_that_is_bad_or_failed():
    names = ["a", "b", "c"]
    probes = [ProbeRecord.failed("a", "crash"), *probed(b=0.0, c=0.4)]
    assert sorted(allocate(names, probes, 2, "f1")) == names


def test_heads_of_one_backbone_run_together_and_the_most_frozen_first():
    configs = {
        4: make_config(backbone="a", freeze_depth=0.5),
        5: make_config(backbone="b", freeze_depth=1.0),
        6: make_config(backbone="a", freeze_depth=1.0),
        7: make_config(backbone="b", freeze_depth=1.0, optimizer="sgd", loss="focal"),
    }
    assert order(configs, {"a", "b"}) == [[6], [4], [5, 7]]
    assert order(configs, {"a"}) == [[6], [4], [5], [7]]


def test_heads_run_apart_on_other_images_and_on_other_random_weights():
    one = {"backbone": "a", "freeze_depth": 1.0}
    assert order({0: make_config(**one), 1: make_config(**one, augmentation="none")}, {"a"}) == [[0], [1]]
    assert order({0: make_config(**one, init="scratch"), 1: make_config(**one, init="scratch")}, {"a"}) == [
        [0],
        [1],
    ]
    whole = {"backbone": "a", "freeze_depth": 0.0}
    assert order({0: make_config(**whole), 1: make_config(**whole)}, {"a"}) == [[0], [1]]
