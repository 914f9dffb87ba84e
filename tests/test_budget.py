from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
from records_factory import make_record

from harness import NoTrialSucceeded, run_study
from harness.config import FinalizeConfig
from harness.search import budget as module
from harness.search.budget import Budget
from harness.search.cost import CostModel


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lasted(seconds, **changes):
    record = make_record(**changes)
    config = dataclasses.replace(record.config, epochs=len(record.curve))
    cost = dataclasses.replace(record.cost, flops=1e6, frozen_flop_share=0.25, total_seconds=seconds)
    return dataclasses.replace(record, config=config, cost=cost)


def room(budget):
    """Return the seconds that trials may take which do not become finalists."""
    return budget.left - budget._reserved(0.0)


def test_the_finalists_time_is_set_aside(clock):
    records = [lasted(10, number=0), lasted(10, number=1, lr=2e-4)]
    costs = CostModel(records)
    reserve = sum(costs.final_seconds(record) for record in records)
    budget = Budget(100, FinalizeConfig(top=2))
    budget.plan(records, [], CostModel(records))
    clock.now = 100 - reserve - 10
    assert room(budget) == pytest.approx(10)
    assert budget.affords(9, longest=9)
    assert budget.pays_for(10, longest=10)
    assert not budget.affords(13, longest=10)
    assert not budget.is_spent
    assert not budget.pays_for(20, longest=10)
    assert budget.is_spent
    assert budget.pays_for_final(records[0], costs)


def test_what_trainings_take_beside_their_records_is_set_aside_too(clock):
    records = [lasted(10, number=0)]
    budget = Budget(100, FinalizeConfig(top=1, seeds=2))
    budget.plan(records, [], CostModel(records))
    before = room(budget)
    for seconds in (30, 2, 2):  # the first waited for the worker
        budget.note_overhead(seconds)
    budget.plan(records, [], CostModel(records))
    assert room(budget) == pytest.approx(before - 2 * 2)
    clock.now = 100 - CostModel(records).final_seconds(records[0]) - 1
    budget.note_overhead(2)
    clock.now += 4
    assert not budget.pays_for_final(records[0], CostModel(records))


def test_a_training_that_takes_longer_than_foreseen_ends_at_an_epoch(clock):
    budget = Budget(100, FinalizeConfig(top=0))
    clock.now = 95
    assert not budget.is_overrun(8), "there is no result yet"
    budget.plan([lasted(10)], [], CostModel([lasted(10)]))
    assert not budget.is_overrun(6)
    assert budget.is_overrun(8)
    assert budget.is_spent


def test_no_time_is_set_aside_for_a_finalist_that_is_tested(clock):
    trial, final = lasted(10, number=3), lasted(10, kind="final", number=3)
    budget = Budget(100, FinalizeConfig(top=2, seeds=1))
    budget.plan([trial], [], CostModel([trial]))
    assert room(budget) < 95
    budget.plan([trial], [final], CostModel([trial]))
    assert room(budget) == 100


def test_a_study_in_which_everything_fails_ends_with_its_time(tiny, registry, tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    config = tiny(trials=None, budget=20, space={"loss": "raising"})
    with pytest.raises(NoTrialSucceeded):
        run_study(config, registry=registry, runs=tmp_path)


def test_a_budget_that_was_cut_off_goes_on_with_the_trials_it_has(tiny, registry, tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    asked = {"trials": None, "space": {"freeze_depth": [0.0, 1.0]}, "finalize": {"top": 1}}
    first = run_study(tiny(**asked, budget=30), registry=registry, runs=tmp_path)
    again = run_study(tiny(**asked, budget=40), registry=registry, runs=tmp_path)
    kept = {record.folder: record for record in again.records}
    assert len(kept) > len(first.records)
    assert all(kept[record.folder].created == record.created for record in first.records)


def test_a_trial_that_the_budget_ends_says_so(tiny, registry, tmp_path, monkeypatch, clock):
    """Its first trial is fast, the second one slow."""
    from harness.registry import Registry

    notify = Registry.notify

    def slow(registry, hook, **values):
        if hook == "harness_epoch_finished" and values["number"] == 1:
            clock.now += 200
        notify(registry, hook, **values)

    monkeypatch.setattr(Registry, "notify", slow)
    study = tiny(trials=3, budget=100, space={"freeze_depth": 0.0}, finalize={"top": 1})
    result = run_study(study, registry=registry, runs=tmp_path)
    assert result.timed_out
    reasons = {record.number: record.reason for record in result.records if record.kind == "search"}
    assert (reasons[0], reasons[1]) == ("", "out of time at epoch 1 of 3")


def test_without_a_budget_everything_is_paid_for(clock):
    budget = Budget(None, FinalizeConfig())
    record = lasted(1e9)
    budget.plan([record], [], CostModel([record]))
    clock.now = 1e12
    assert budget.left == math.inf
    assert budget.pays_for(1e9, longest=1e9)
    assert room(budget) == math.inf
    assert not budget.is_overrun(1e9)
    assert not budget.is_spent


def test_a_study_within_a_budget_ends_with_its_finalist_and_says_why(tiny, registry, tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    config = tiny(trials=None, budget=40, space={"freeze_depth": [0.0, 1.0]}, finalize={"top": 1})
    result = run_study(config, registry=registry, runs=tmp_path)
    assert result.trials is None
    assert result.timed_out
    kinds = [record.kind for record in result.records]
    assert kinds.count("final") == 1
    assert 1 <= kinds.count("search") < 40


def test_a_budget_counts_what_comes_before_the_first_trial(tiny, registry, tmp_path, monkeypatch, clock):
    from harness.search import study

    load = study._load

    def load_slowly(*values, **named):
        clock.now += 1000
        return load(*values, **named)

    monkeypatch.setattr(study, "_load", load_slowly)
    result = run_study(tiny(trials=4, budget=100), registry=registry, runs=tmp_path)
    assert result.timed_out
    # One is completed and tested whatever the time.
    assert [record.kind for record in result.records] == ["search", "final"]


def test_a_trial_that_would_be_a_finalist_leaves_time_to_be_tested(clock):
    records = [lasted(10, number=0), lasted(30, number=1, lr=2e-4)]
    reserve = [CostModel(records).final_seconds(record) for record in records]
    one, two, three = (Budget(100, FinalizeConfig(top=top)) for top in (1, 2, 3))
    for budget in (one, two, three):
        budget.plan(records, [], CostModel(records))
    # The cheapest gives way, where there are as many as are wanted.
    for budget, own in ((two, 40 - min(reserve)), (three, 40)):
        assert budget._reserved(40) == pytest.approx(sum(reserve) + own)
    assert one._reserved(1000) == pytest.approx(1000)
    assert two._reserved(0) == pytest.approx(sum(reserve))
