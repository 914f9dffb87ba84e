from __future__ import annotations

import dataclasses

import pytest
from records_factory import make_record

from harness.records import ProbeRecord
from harness.search.cost import OVERHEAD, CostModel


def measured(backbone, depth, *, flops, share, seconds=1.0, cut="trace"):
    record = make_record(backbone=backbone, freeze_depth=depth)
    curve = tuple(dataclasses.replace(epoch, seconds=seconds / len(record.curve)) for epoch in record.curve)
    record = dataclasses.replace(record, curve=curve)
    cost = dataclasses.replace(
        record.cost, flops=flops, frozen_flop_share=share, total_seconds=seconds, cut=cut
    )
    return dataclasses.replace(record, cost=cost)


def _counted(record, counts):
    return dataclasses.replace(record, dataset=dataclasses.replace(record.dataset, counts=counts))


def test_work_falls_with_the_frozen_share_and_grows_with_the_backbone():
    costs = CostModel(
        [measured("small", 0.5, flops=1e6, share=0.8), measured("large", 0.0, flops=4e6, share=0)]
    )
    assert costs.work("large", 0.0) == pytest.approx(3 * (1 + OVERHEAD))
    assert costs.work("small", 0.5) == pytest.approx(3 * (0.25 * 0.2 + OVERHEAD))
    assert costs.work("small", 0.25) == pytest.approx(3 * (0.25 * 0.6 + OVERHEAD))
    assert costs.work("large", 1.0) == pytest.approx(3 * OVERHEAD)


def test_a_model_that_cannot_be_cut_saves_nothing():
    costs = CostModel([measured("a", 1.0, flops=1e6, share=1.0, cut="none")])
    assert costs.work("a", 1.0) == costs.work("a", 0.0)


def test_a_backbone_without_records_counts_as_the_mean():
    costs = CostModel([measured("a", 0.0, flops=1e6, share=0), measured("b", 0.0, flops=3e6, share=0)])
    assert costs.work("c", 0.0) == pytest.approx(3 * (2 / 3 + OVERHEAD))


def test_work_does_not_depend_on_the_seconds_of_this_machine():
    fast, slow = ([measured("a", 0.5, flops=1e6, share=0.4, seconds=s)] for s in (1, 50))
    assert CostModel(fast).work("a", 0.25) == CostModel(slow).work("a", 0.25)


def test_seconds_are_those_of_the_slowest_trial_for_its_work_and_nothing_without_one():
    assert CostModel([]).seconds("a", 0.0, 5) == 0
    records = [measured("a", 0.0, flops=1e6, share=0, seconds=s) for s in (10, 30)]
    epochs = len(records[0].curve)
    costs = CostModel(records)
    assert costs.seconds("a", 0.0, epochs) == pytest.approx(30)
    assert costs.seconds("a", 0.0, 2 * epochs) == pytest.approx(60)
    assert costs.seconds("a", 1.0, epochs) < 3
    assert 10 < costs.final_seconds(records[0]) < 20


def test_what_a_training_takes_once_is_not_multiplied():
    """A head of ten milliseconds an epoch that took a second to set up, and whose first epoch was slow."""
    head = measured("a", 1.0, flops=1e6, share=1.0, seconds=1.0)
    seconds = [0.5, *[0.01] * (len(head.curve) - 1)]
    curve = [dataclasses.replace(epoch, seconds=s) for epoch, s in zip(head.curve, seconds, strict=True)]
    costs = CostModel([dataclasses.replace(head, curve=tuple(curve))])
    epochs = len(curve)
    once = 1.0 - 0.01 * epochs
    assert costs.seconds("a", 1.0, epochs) == pytest.approx(1.0)
    assert costs.seconds("a", 0.0, epochs) == pytest.approx(once + 0.01 * epochs * (1 + OVERHEAD) / OVERHEAD)


def test_passes_of_the_frozen_part_are_no_measure_of_the_rest():
    cold = measured("a", 1.0, flops=1e6, share=1.0, seconds=60.0)
    cold = dataclasses.replace(cold, cost=dataclasses.replace(cold.cost, prefix_seconds=59.4))
    costs = CostModel([cold])
    epochs = len(cold.curve)
    assert costs.seconds("a", 0.0, epochs) == pytest.approx(0.6 * (1 + OVERHEAD) / OVERHEAD)
    assert costs.seconds("a", 1.0, epochs) == pytest.approx(60)


def test_the_test_pass_of_a_head_is_foretold_from_what_a_probe_took():
    head = measured("a", 1.0, flops=1e6, share=1.0, seconds=0.5)
    counts = {"train": (60, 40), "val": (10, 10), "test": (300, 300)}
    head = _counted(head, counts)
    probe = ProbeRecord(
        backbone="a", ridge_f1=0.5, ridge_accuracy=0.5, knn_f1=0.5, knn_accuracy=0.5, seconds=12.0
    )
    assert CostModel([head], [probe]).final_seconds(head) == pytest.approx(0.5 + 12.0 * 600 / 120)


def test_the_test_pass_of_a_head_takes_as_long_as_other_trials_of_its_backbone_say():
    counts = {"train": (60, 40), "val": (10, 10), "test": (300, 300)}
    head = _counted(measured("a", 1.0, flops=1e6, share=1.0, seconds=0.01), counts)
    whole = _counted(measured("a", 0.0, flops=1e6, share=0.0, seconds=30.0), counts)
    epochs = len(whole.curve)
    # A third of an epoch on each image, and six times as many as for training.
    assert CostModel([head, whole]).final_seconds(head) == pytest.approx(0.01 + 30 / epochs / 3 * 6, rel=0.01)
