from __future__ import annotations

import random

import numpy as np
import torch

from harness.engine.randomness import RandomState
from harness.isolation import kept_random_state, seed_all


def draw():
    return random.random(), np.random.rand(), float(torch.rand(()))


def test_numbers_are_those_of_the_seed_and_go_on_where_they_were_left():
    with kept_random_state():
        seed_all(7)
        expected = [draw() for _ in range(3)]
        own, other = (RandomState(seed, torch.device("cpu")) for seed in (7, 8))
        found = []
        for _ in range(3):
            with own:
                found.append(draw())
            with other:
                assert draw() not in expected
    assert found == expected


def test_numpys_generator_is_given_back():
    before = np.random.get_bit_generator()
    with RandomState(0, torch.device("cpu")):
        assert np.random.get_bit_generator() is not before
    assert np.random.get_bit_generator() is before
