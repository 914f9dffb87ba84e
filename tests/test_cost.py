from __future__ import annotations

import pytest

from harness.engine import cost
from harness.engine.cost import Bandwidth, is_worth_storing


def worth(**changes):
    values = {"seconds": 1e-2, "size": 1e5, "reads": 10.0, "bandwidth": 1e9} | changes
    return is_worth_storing(**values)


def test_slow_activations_of_few_bytes_that_are_read_often_are_stored():
    assert worth()


@pytest.mark.parametrize(
    "change", [{"seconds": 1e-5}, {"size": 1e8}, {"reads": 1.0}, {"bandwidth": 1e6}, {"seconds": 0.0}]
)
def test_each_of_speed_size_reads_and_bandwidth_can_decide_against_it(change):
    assert not worth(**change)


def test_what_is_read_once_is_never_stored_however_fast_the_disk_is():
    assert not worth(reads=1.0, bandwidth=1e15)
    assert worth(reads=2.0, bandwidth=1e15)


def test_the_border_lies_where_both_ways_cost_the_same():
    # Computing four times: 4 s. Computing once, writing once and reading four times: 1 s + 5 transfers.
    assert worth(seconds=1.0, reads=4.0, size=0.59, bandwidth=1.0)
    assert not worth(seconds=1.0, reads=4.0, size=0.61, bandwidth=1.0)


def test_bandwidth_follows_what_is_measured(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 6.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    bandwidth = Bandwidth()
    start = bandwidth.value
    with bandwidth.measured(10_000_000):
        pass
    slow = bandwidth.value
    assert slow < start / 5
    with bandwidth.measured(10_000_000_000):
        pass
    assert bandwidth.value > 10 * slow
