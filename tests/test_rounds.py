from __future__ import annotations

import pytest
from records_factory import make_config

from harness.search.rounds import Rounds, order


@pytest.mark.parametrize(
    ("number", "bounds"),
    [(3, (3, 8)), (7, (3, 8)), (8, (8, 10)), (9, (8, 10)), (10, (10, 12)), (31, (30, 32))],
)
def test_every_trial_belongs_to_one_round(number, bounds):
    assert Rounds(start=3, first=5, size=2).bounds(number) == bounds


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
