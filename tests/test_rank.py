import dataclasses
import functools
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_factory import (
    COUNTS,
    answer,
    make_entry,
    make_protocol,
    make_record,
    make_scores,
    write_runs,
)

from harness.errors import UnknownNameError
from harness.leaderboard import rank as ranking
from harness.leaderboard.board import COLUMNS
from harness.leaderboard.entry import Entry
from harness.leaderboard.rank import load
from harness.metrics import evaluate


def rank(records, **options):
    """Rank records without predictions. The confusion matrices of the factory make them all share a rank."""
    return ranking.rank([Entry(record=record) for record in records], **options)


def numbers(board):
    return [row.number for row in board.rows]


def only(boards):
    assert len(boards) == 1
    return boards[0]


def trials(*scores, **values):
    return [make_record(number=n, f1=f1, lr=1e-4 * (n + 1), **values) for n, f1 in enumerate(scores)]


def test_no_records_make_no_table():
    assert rank([]) == []
    assert rank([], dataset="anything") == []


def test_rows_are_sorted_by_the_metric_asked_for():
    records = [
        make_record(number=0, f1=0.7, accuracy=0.9),
        make_record(number=1, f1=0.9, accuracy=0.7, lr=1e-3),
        make_record(number=2, f1=0.8, accuracy=0.8, lr=1e-2),
    ]
    assert numbers(only(rank(records))) == [1, 2, 0]
    board = only(rank(records, metric="accuracy"))
    assert numbers(board) == [0, 2, 1]
    assert board.metric == "accuracy"


def test_the_cheaper_of_those_that_share_a_rank_comes_first():
    records = [
        make_record(number=0, f1=0.8, lr=1e-4, seconds=20),
        make_record(number=1, f1=0.8 + 5e-13, lr=2e-4, seconds=30),
        make_record(number=2, f1=0.8, lr=3e-4, seconds=10, params=200),
        make_record(number=3, f1=0.8, lr=4e-4, seconds=10, params=100),
        make_record(number=4, f1=0.8 + 1e-9, lr=6e-4, seconds=99),
    ]
    board = only(rank(records))
    assert numbers(board) == [3, 2, 0, 1, 4]
    assert [row.rank for row in board.rows] == [1] * 5


def test_protocols_never_share_a_table():
    records = [
        make_record(study="a", f1=0.7),
        make_record(study="b", f1=0.9, protocol=make_protocol("two")),
        make_record(study="c", f1=0.8),
    ]
    boards = rank(records)
    assert sorted([row.study for row in board.rows] for board in boards) == [["b"], ["c", "a"]]
    assert all(board.other == 1 for board in boards)
    assert len({board.protocol for board in boards}) == 2


def test_a_table_says_in_what_the_other_protocol_differs():
    one = make_protocol()
    splits = {**one.splits, "test": "0" * 64}
    other = dataclasses.replace(one, digest="f" * 64, splits=splits, decode="srgb/2")
    for board in rank([make_record(study="a"), make_record(study="b", protocol=other)]):
        assert board.differences == ("test split", "decode")
        assert "not comparable with 1 other protocol" in board.caption()
        assert "test split, decode" in board.caption()


def test_a_protocol_without_a_complete_trial_is_no_other_table():
    records = [make_record(study="a"), make_record(study="b", state="failed", protocol=make_protocol("two"))]
    assert only(rank(records)).other == 0


def test_data_sets_never_share_a_table_even_with_one_protocol():
    boards = rank([make_record(dataset="b"), make_record(dataset="a", study="other")])
    assert [board.dataset for board in boards] == ["a", "b"]
    assert all(board.other == 0 for board in boards)


def test_scratch_rows_have_a_table_of_their_own():
    boards = rank([make_record(study="a", f1=0.9, init="scratch"), make_record(study="b", f1=0.8)])
    assert [(board.init, len(board.rows)) for board in boards] == [("pretrained", 1), ("scratch", 1)]
    assert "scratch" not in boards[0].caption()
    assert "scratch" in boards[1].caption()
    assert boards[1].rows[0].licence == "none"


def test_a_data_set_can_be_chosen():
    records = [make_record(dataset="beans"), make_record(dataset="flowers", study="other")]
    assert only(rank(records, dataset="beans")).dataset == "beans"
    with pytest.raises(UnknownNameError, match="did you mean 'flowers'"):
        rank(records, dataset="flower")


def test_seeds_of_a_configuration_are_one_row():
    finals = [
        make_record(kind="final", number=3, seed=seed, f1=f1, accuracy=f1 + 0.1, seconds=seconds)
        for seed, f1, seconds in ((1, 0.6, 10), (2, 0.7, 20), (3, 0.8, 60))
    ]
    board = only(rank(finals))
    row = only(board.rows)
    assert board.split == "test"
    assert (row.number, row.seeds) == (3, 3)
    assert row.f1 == pytest.approx(0.7)
    assert row.accuracy == pytest.approx(0.8)
    assert row.f1_interval == pytest.approx((0.68, 0.72))
    assert row.accuracy_interval == pytest.approx((0.78, 0.82))
    assert row.seconds == pytest.approx(30)


def test_the_same_configuration_in_two_studies_is_two_rows():
    assert len(only(rank([make_record(study="a"), make_record(study="b")])).rows) == 2


def test_a_record_given_twice_counts_once():
    final = make_record(kind="final", seed=1)
    row = only(only(rank([final, dataclasses.replace(final)])).rows)
    assert row.seeds == 1
    assert only(rank([make_record(), make_record()])).outcomes == {"complete": 1}


def test_final_trainings_decide_the_split_unless_one_is_asked_for():
    records = [*trials(0.7, 0.8), make_record(kind="final", number=0, seed=5, f1=0.6, lr=1e-4)]
    auto, val, test = (only(rank(records, split=split)) for split in ("auto", "val", "test"))
    assert (auto.split, numbers(auto)) == ("test", [0])
    assert (val.split, numbers(val)) == ("val", [1, 0])
    assert test.rows == auto.rows
    assert only(auto.rows).f1 == pytest.approx(0.6)
    assert rank(trials(0.7), split="test") == []


def test_one_kind_of_initialisation_keeps_its_val_table_when_the_other_has_finals():
    records = [make_record(kind="final", seed=1), make_record(study="s", init="scratch")]
    found = [(board.init, board.split) for board in rank(records)]
    assert found == [("pretrained", "test"), ("scratch", "val")]


def test_a_study_without_test_scores_is_named():
    board = only(rank([make_record(kind="final", seed=1), make_record(study="unfinished")]))
    assert board.unranked == ("unfinished",)
    assert "no test scores: unfinished" in board.caption()


def test_only_complete_trials_are_rows_and_the_others_are_counted():
    states = ["complete"] * 9 + ["pruned"] * 4 + ["failed"]
    records = [make_record(number=n, state=state, lr=1e-4 * (n + 1)) for n, state in enumerate(states)]
    board = only(rank(records))
    assert len(board.rows) == 9
    assert board.outcomes == {"complete": 9, "pruned": 4, "failed": 1}
    assert "14 trials: 9 complete, 4 pruned, 1 failed" in board.caption()


def test_trials_that_all_failed_make_no_table():
    assert rank([make_record(state="failed")]) == []


def test_failed_final_trainings_are_counted():
    board = only(rank([make_record(kind="final", seed=1), make_record(kind="final", seed=2, state="failed")]))
    assert "2 final trainings: 1 complete, 1 failed" in board.caption()
    assert "! failed trainings count as the floor" in board.caption()
    row = only(board.rows)
    assert (row.seeds, row.failed) == (1, 1)
    assert row.f1 == pytest.approx((0.8 + board.floor.f1) / 2)
    assert row.val == pytest.approx((0.8 + 2 * 0.5 / 1.5 / 3) / 2)
    assert row.f1_interval[0] == pytest.approx((0.78 + board.floor.f1) / 2)


def test_the_caption_says_what_was_scored():
    caption = only(rank(trials(0.8))).caption()
    protocol = make_protocol().digest[:8]
    assert caption == (
        "trashnet · macro-F1 on val (20 images, 3 classes) · train 100, val 20, test 30 · "
        f"1 trial: 1 complete · 1 row without predictions, compared unpaired · protocol {protocol}"
    )


def test_the_caption_says_when_a_class_has_no_images():
    board = only(rank([make_record(counts={**COUNTS, "val": (6, 0, 14)})]))
    assert "(20 images, 3 classes, 2 with images)" in board.caption()


def test_by_backbone_keeps_the_best_run_of_each():
    records = [
        make_record(number=0, f1=0.8, backbone="a", lr=1e-4),
        make_record(number=1, f1=0.9, backbone="a", lr=2e-4),
        make_record(number=2, f1=0.85, backbone="b"),
    ]
    board = only(rank(records, by="backbone"))
    assert [(row.rank, row.backbone, row.number) for row in board.rows] == [(1, "a", 1), (1, "b", 2)]
    assert "chosen on val" in board.caption()


def test_the_test_split_does_not_choose_the_best_run_of_a_backbone():
    records = [
        make_record(kind="final", number=0, seed=1, lr=1e-4, val_f1=0.9, f1=0.7),
        make_record(kind="final", number=1, seed=1, lr=2e-4, val_f1=0.8, f1=0.95),
    ]
    row = only(only(rank(records, by="backbone")).rows)
    assert (row.number, row.f1) == (0, pytest.approx(0.7))


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_floor_is_the_majority_class_of_the_training_split(split):
    # Paper leads in train only; in val and test glass does, and metal has no image.
    counts = {"train": (30, 20, 50), "val": (11, 0, 9), "test": (20, 0, 10)}
    kind = "final" if split == "test" else "search"
    board = only(rank([make_record(kind=kind, counts=counts, seed=1)]))
    labels = np.repeat(np.arange(3), counts[split])
    oracle = evaluate(labels, np.full(len(labels), 2), 3)
    assert board.split == split
    assert board.floor.label == "paper"
    assert board.floor.accuracy == pytest.approx(oracle.accuracy, abs=1e-12)
    assert board.floor.f1 == pytest.approx(oracle.f1, abs=1e-12)


def test_the_floor_by_hand():
    floor = only(rank([make_record()])).floor
    # val: 6, 4, 10 images; all are called paper: precision 10/20, recall 1.
    assert floor.accuracy == 0.5
    assert floor.f1 == pytest.approx(2 * 0.5 / 1.5 / 3)


def test_a_floor_that_never_hits_is_zero():
    floor = only(rank([make_record(counts={**COUNTS, "val": (10, 10, 0)})])).floor
    assert (floor.f1, floor.accuracy) == (0, 0)


def test_records_without_counts_have_no_floor():
    assert only(rank([make_record(counts={"val": (6, 4, 10)})])).floor is None


def test_a_row_names_foreign_plugins():
    foreign = make_record(distributions={"optimizer": "harness-sam", "loss": "harness-poly"})
    assert only(only(rank([foreign])).rows).plugin == "transfer-harness, harness-poly, harness-sam"
    own = make_record(distributions={"backbone": "harness-nets"})
    assert only(only(rank([own])).rows).plugin == "harness-nets"


def test_a_row_names_all_devices_of_its_seeds():
    finals = [make_record(kind="final", seed=seed, device=name) for seed, name in ((1, "cpu"), (2, "H200"))]
    assert only(only(rank(finals)).rows).device == "H200, cpu"


def test_weights_without_a_licence_are_of_unknown_licence():
    assert only(only(rank([make_record(licence="")])).rows).licence == "unknown"


def test_a_row_without_costs_is_ranked_last_of_its_equals():
    records = [
        dataclasses.replace(make_record(number=0), cost=None),
        make_record(number=1, lr=1e-3),
    ]
    board = only(rank(records))
    assert numbers(board) == [1, 0]
    assert board.rows[1].seconds is None


def test_the_order_of_records_has_no_influence():
    records = [
        *trials(0.8, 0.8, 0.7, seconds=5),
        *(make_record(kind="final", number=0, seed=seed, f1=0.1 * seed) for seed in range(1, 6)),
        make_record(study="b", protocol=make_protocol("two")),
        make_record(study="c", init="scratch"),
        make_record(number=9, state="failed"),
    ]
    for by in ("run", "backbone"):
        expected = rank(records, by=by)
        for seed in range(10):
            shuffled = random.Random(seed).sample(records, len(records))
            assert rank(shuffled, by=by) == expected


def test_a_frame_holds_every_column_in_full_precision():
    frame = only(rank([make_record(f1=1 / 3)])).frame()
    assert tuple(frame.columns) == COLUMNS
    assert frame.loc[0, "f1"] == 1 / 3
    assert frame.loc[0, "f1_low"] == 1 / 3 - 0.02
    assert frame.loc[0, "dataset"] == "trashnet"
    assert frame.loc[0, "split"] == "val"


def test_load_reads_every_study_and_reports_what_is_damaged(tmp_path):
    write_runs(tmp_path, make_record(), make_record(study="b", kind="final", seed=1))
    bad = tmp_path / "demo/trials/0001/record.json"
    bad.parent.mkdir()
    bad.write_text("{", encoding="utf-8")
    edited = write_runs(tmp_path, make_record(study="c", f1=0.8125)) / "c/trials/0000/record.json"
    edited.write_text(edited.read_text(encoding="utf-8").replace("0.8125", "0.9925"), encoding="utf-8")
    entries, problems = load(tmp_path)
    assert {entry.record.study for entry in entries} == {"demo", "b"}
    assert len(problems) == 2
    assert problems[0].startswith(f"{edited}: a record does not match its own SHA-256")
    assert problems[1].startswith(f"{bad}: a record cannot be read (it is damaged")


def test_load_of_no_folder_is_empty(tmp_path):
    assert load(tmp_path / "none") == ([], [])


def test_ranking_imports_nothing_heavy():
    heavy = "('torch', 'pandas', 'scipy', 'optuna', 'pydantic', 'timm', 'pluggy')"
    code = f"import sys, harness.leaderboard.rank; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scores_of_a_split_that_a_final_lacks_do_not_count():
    final = make_record(kind="final", seed=1, scores={"val": make_scores(0.9)})
    assert rank([final]) == []


LABELS = np.arange(600) % 3


def entries_of(*accuracies, **values):
    """One entry for each accuracy, in studies of their own."""
    return [
        make_entry(answer(LABELS, accuracy, seed), LABELS, study=f"s{seed}", **values)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_clear_winners_are_ranked_apart():
    board = only(ranking.rank(entries_of(0.6, 0.95, 0.8)))
    assert [(row.rank, row.study) for row in board.rows] == [(1, "s1"), (2, "s2"), (3, "s0")]
    assert all(row.has_answers for row in board.rows)
    assert "unpaired" not in board.caption()


def test_rows_that_cannot_be_told_apart_share_a_rank_and_the_cheaper_is_first():
    near = [0.9, 0.905, 0.7, 0.71]
    entries = [
        make_entry(answer(LABELS, accuracy, seed), LABELS, study=f"s{seed}", seconds=10.0 * (seed + 1))
        for seed, accuracy in enumerate(near)
    ]
    board = only(ranking.rank(entries))
    assert [(row.rank, row.study) for row in board.rows] == [(1, "s0"), (1, "s1"), (3, "s2"), (3, "s3")]


def test_a_difference_on_the_same_images_counts_where_that_of_two_samples_would_not():
    # Right wherever the other is, and on twelve images more.
    weak = answer(LABELS, 0.8, 1)
    strong = np.where(np.isin(np.arange(600), np.flatnonzero(weak != LABELS)[:12]), LABELS, weak)
    for with_answers, expected in ((True, [1, 2]), (False, [1, 1])):
        entries = [
            make_entry(chosen, LABELS, study=name, with_answers=with_answers)
            for name, chosen in (("strong", strong), ("weak", weak))
        ]
        board = only(ranking.rank(entries))
        assert [row.study for row in board.rows] == ["strong", "weak"]
        assert [row.rank for row in board.rows] == expected
        assert board.unpaired == (0 if with_answers else 2)


def test_clear_winners_are_told_without_predictions_too():
    board = only(ranking.rank(entries_of(0.95, 0.6, with_answers=False)))
    assert [row.rank for row in board.rows] == [1, 2]
    assert "2 rows without predictions, compared unpaired" in board.caption()


@pytest.mark.parametrize("damage", ["other", "short", "range"])
def test_answers_that_do_not_give_the_scores_count_as_none(damage):
    (entry,) = entries_of(0.9)
    found = entry.answers()["val"]
    chosen = {"other": found.labels, "short": found.chosen[:-1], "range": found.chosen + 1}[damage]
    forged = {"val": dataclasses.replace(found, chosen=chosen)}
    board = only(ranking.rank([dataclasses.replace(entry, answers=lambda: forged)]))
    assert not only(board.rows).has_answers


def test_seeds_have_a_spread_and_val_a_gap():
    entries = [
        make_entry(answer(LABELS, 0.8, seed), LABELS, val=answer(LABELS, 0.9, seed), kind="final", seed=seed)
        for seed in (1, 2, 3)
    ]
    row = only(only(ranking.rank(entries)).rows)
    tests = [entry.record.scores["test"].f1 for entry in entries]
    vals = [entry.record.scores["val"].f1 for entry in entries]
    assert row.f1_spread == pytest.approx(np.std(tests, ddof=1))
    assert row.val == pytest.approx(np.mean(vals))
    assert row.gap == pytest.approx(np.mean(vals) - np.mean(tests))
    row = only(only(ranking.rank(entries_of(0.9))).rows)
    assert (row.val, row.gap, row.f1_spread) == (row.f1, None, None)


def test_a_run_whose_final_trainings_all_failed_is_the_last():
    hopeless = make_entry((LABELS + 1) % 3, LABELS, study="hopeless", kind="final", seed=1)
    failed = [
        Entry(record=make_record(study="broken", kind="final", seed=seed, state="failed")) for seed in (1, 2)
    ]
    board = only(ranking.rank([*failed, hopeless, *entries_of(0.9, kind="final", seed=1)]))
    assert [row.study for row in board.rows] == ["s0", "hopeless", "broken"]
    last = board.rows[-1]
    assert (last.rank, last.seeds, last.failed, last.seconds) == (3, 0, 2, None)
    # It scores more than the one before it, and did not work.
    assert last.f1 > board.rows[1].f1


def test_one_failed_seed_of_three_costs_a_row_its_lead():
    good = [
        make_entry(answer(LABELS, 0.9, seed), LABELS, study="good", kind="final", seed=seed)
        for seed in (1, 2, 3)
    ]
    failed = Entry(
        record=make_record(
            study="fragile", kind="final", seed=3, state="failed", counts=good[0].record.dataset.counts
        )
    )
    fragile = [
        make_entry(answer(LABELS, 0.95, seed), LABELS, study="fragile", kind="final", seed=seed)
        for seed in (1, 2)
    ]
    board = only(ranking.rank([*good, *fragile, failed]))
    row = next(row for row in board.rows if row.study == "fragile")
    assert (row.seeds, row.failed) == (2, 1)
    points = [entry.record.scores["test"].f1 for entry in fragile]
    assert row.f1 == pytest.approx((sum(points) + board.floor.f1) / 3)
    assert row.has_answers
    # Two that came out alike are a spread; that the third failed is no uncertainty that would help it.
    assert row.f1_spread == pytest.approx(np.std(points, ddof=1))
    assert [row.study for row in board.rows] == ["good", "fragile"]
    assert [row.rank for row in board.rows] == [1, 2]


def test_a_final_training_that_came_out_when_repeated_did_not_fail():
    again = [make_record(kind="final", seed=1), make_record(kind="final", seed=1, state="failed")]
    assert only(only(rank(again)).rows).failed == 0


def test_bundles_of_two_strangers_are_never_one_run():
    found = entries_of(0.9, kind="final", seed=1)
    copies = [dataclasses.replace(found[0], source=source, tier="re-run") for source in ("b", "a", "a")]
    rows = only(ranking.rank([*found, *copies])).rows
    assert sorted((row.source, row.tier, row.seeds) for row in rows) == [
        ("", "self-reported", 1),
        ("a", "re-run", 1),
        ("b", "re-run", 1),
    ]


def test_an_entry_counts_once_in_its_higher_tier_and_a_row_has_its_lowest():
    one, two = (
        make_entry(answer(LABELS, 0.9, seed), LABELS, kind="final", seed=seed, source="a") for seed in (1, 2)
    )
    checked = dataclasses.replace(one, tier="recomputed")
    for entries in ([one, checked], [checked, one]):
        assert only(only(ranking.rank(entries)).rows).tier == "recomputed"
    assert only(only(ranking.rank([checked, two])).rows).tier == "self-reported"


@functools.cache
def crowd():
    points = [0.95, 0.94, 0.9, 0.9, 0.86, 0.8, 0.8, 0.79, 0.5]
    many = [make_record(kind="final", study="x", seed=seed, state="failed") for seed in (1, 2)]
    return (
        *entries_of(*points, kind="final", seed=1),
        *entries_of(*points[:4], kind="final", seed=2),
        *(Entry(record=record) for record in many),
    )


@functools.cache
def of_crowd():
    return ranking.rank(crowd())


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(15)))
def test_ranks_do_not_depend_on_the_order_of_rows(order):
    assert ranking.rank([crowd()[index] for index in order]) == of_crowd()


@settings(max_examples=8, deadline=None)
@given(index=st.integers(0, 12))
def test_a_clone_changes_no_group(index):
    original = crowd()[index].record
    clones = [
        dataclasses.replace(entry, source="clone")
        for entry in crowd()
        if entry.record.study == original.study
    ]
    before = {row.study: row.rank for row in only(of_crowd()).rows}
    after = [(row.study, row.rank) for row in only(ranking.rank([*crowd(), *clones])).rows]
    # A group that comes after the clone begins one place lower; groups are the same, and so is their order.
    groups = {}
    for study, place in after:
        groups.setdefault(place, set()).add(study)
    expected = {}
    for study, place in before.items():
        expected.setdefault(place, set()).add(study)
    assert [groups[place] for place in sorted(groups)] == [expected[place] for place in sorted(expected)]
