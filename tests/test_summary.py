import dataclasses
import random

import pytest
from records_factory import make_record

from harness.leaderboard.entry import Entry
from harness.leaderboard.rank import rank
from harness.leaderboard.report import format_summary
from harness.leaderboard.summary import summarise


def board(dataset, **ranks):
    """A leaderboard by backbone with the ranks given."""
    (made,) = rank([Entry(record=make_record(dataset=dataset))], by="backbone")
    rows = [
        dataclasses.replace(made.rows[0], backbone=name, rank=place)
        for name, place in sorted(ranks.items(), key=lambda item: item[1])
    ]
    return dataclasses.replace(made, rows=tuple(rows))


def standings(summary):
    return {item.backbone: item for item in summary.standings}


def test_mean_rank_borda_and_win_rate_by_hand():
    summary = summarise([board("x", a=1, b=2, c=3), board("y", a=2, b=1, c=2)])
    found = standings(summary)
    assert summary.datasets == ("x", "y")
    # On y the ranks 2 and 3 are shared: 2.5 each.
    assert found["a"].places == (1, 2.5)
    assert [found[name].mean_rank for name in "abc"] == [1.75, 1.5, 2.75]
    assert [found[name].borda for name in "abc"] == [2.5, 3, 0.5]
    assert [found[name].win_rate for name in "abc"] == [0.5, 0.75, 0]
    assert [item.backbone for item in summary.standings] == ["b", "a", "c"]


def test_equal_standings_share_a_rank():
    summary = summarise([board("x", a=1, b=2, c=3), board("y", a=2, b=1, c=3)])
    assert [(item.rank, item.backbone) for item in summary.standings] == [(1, "a"), (1, "b"), (3, "c")]
    assert format_summary(summary).splitlines()[3].split()[:2] == ["1=", "a"]


def test_only_data_sets_that_all_rows_share_count():
    boards = [
        board("x", a=1, b=2),
        board("y", a=1, b=2, stray=3),
        board("z", a=2, b=1),
        board("w", a=1, other=2),
    ]
    summary = summarise(boards)
    assert summary.datasets == ("x", "y", "z")
    assert summary.left_out_datasets == ("w",)
    assert summary.left_out_backbones == ("other", "stray")
    assert "left out data sets: w" in summary.caption()
    assert "left out backbones: other, stray" in summary.caption()


def test_the_largest_block_is_found_where_no_two_backbones_alone_have_it():
    pairs = ["ab", "ac", "ad", "bc", "bd", "cd"]
    boards = [board(data, a=1, b=2, c=3, d=4) for data in ("A", "B")]
    boards += [board(pair, **{pair[0]: 1, pair[1]: 2}) for pair in pairs]
    summary = summarise(boards)
    assert summary.datasets == ("A", "B")
    assert [item.backbone for item in summary.standings] == ["a", "b", "c", "d"]


def test_many_holes_do_not_hide_the_largest_block(monkeypatch):
    monkeypatch.setattr("harness.leaderboard.summary.MOST", 50)
    # Each backbone is missing on one data set of its own: any choice of them has other sets in common.
    names = [f"n{number:02d}" for number in range(16)]
    boards = [
        board(f"set-{hole}", **{name: place for place, name in enumerate(names, 1) if name != hole})
        for hole in names
    ]
    summary = summarise(boards)
    assert len(summary.standings) * len(summary.datasets) == 64


def test_ranks_are_among_those_that_are_compared():
    summary = summarise([board("x", stray=1, a=2, b=3), board("y", a=1, b=2)])
    assert standings(summary)["a"].places == (1, 1)


@pytest.mark.parametrize(
    "boards",
    [[], [board("x", a=1, b=2)], [board("x", a=1, b=2), board("y", c=1, d=2)], [board("x", a=1)] * 2],
)
def test_nothing_shared_is_no_summary(boards):
    assert summarise(boards) is None


def test_the_order_of_boards_and_rows_has_no_influence():
    boards = [board("x", a=1, b=2, c=2), board("y", b=1, a=2, c=3), board("z", c=1, a=1, b=1, d=4)]
    expected = summarise(boards)
    for seed in range(10):
        shuffled = random.Random(seed).sample(boards, 3)
        rows = [
            dataclasses.replace(one, rows=tuple(random.Random(seed).sample(one.rows, len(one.rows))))
            for one in shuffled
        ]
        assert summarise(rows) == expected


def test_two_protocols_of_a_data_set_are_two():
    one = board("x", a=1, b=2)
    summary = summarise([one, dataclasses.replace(one, protocol="f" * 64)])
    assert summary.datasets == (f"x ({one.protocol[:8]})", "x (ffffffff)")


def test_boards_that_do_not_belong_together_are_refused():
    one = board("x", a=1, b=2)
    for other in ({"metric": "accuracy"}, {"init": "scratch"}, {"by": "run"}):
        with pytest.raises(ValueError, match="by backbone"):
            summarise([one, dataclasses.replace(one, **other)])


def test_a_hostile_name_is_inert():
    text = format_summary(
        summarise([board("\x1b[2J", **{"\x1ba": 1, "b": 2}), board("y", **{"\x1ba": 1, "b": 2})])
    )
    assert "\x1b" not in text
