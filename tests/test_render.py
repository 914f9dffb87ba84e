import csv
import io
import json
import re

import numpy as np
import pytest
from records_factory import answer, make_entry, make_record
from rich.cells import cell_len
from rich.console import Console

from harness.leaderboard import rank as ranking
from harness.leaderboard import render
from harness.leaderboard.board import COLUMNS
from harness.leaderboard.entry import Entry
from harness.leaderboard.render import (
    escape_paragraph,
    format_count,
    format_csv,
    format_json,
    format_lr,
    format_markdown,
    format_seconds,
    format_table,
    render_table,
)
from harness.leaderboard.report import format_columns

LONG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
HOSTILE = ["[bold]x", "\x1b[2J\x07", "=HYPERLINK(1)", "a|b", "safe\u202egpj.exe", "a\nb", "<b>x</b>"]
ORDER = ["#", "backbone", "freeze", "lr", "optimizer", "augment", "loss", "val", "F1 [95 %]", "gap", "seeds"]
ORDER += ["spread", "acc [95 %]", "params (trainable)", "train", "tier", "device", "plugin"]
ORDER += ["weights licence", "px", "epochs", "study"]
LEAVING = ["study", "epochs", "px", "weights licence", "plugin", "device", "loss", "augment", "tier", "train"]
LEAVING += ["params (trainable)", "acc [95 %]", "optimizer", "spread", "seeds", "lr", "freeze", "gap", "val"]


def rank(records, **options):
    return ranking.rank([Entry(record=record) for record in records], **options)


def boards(**values):
    """Two final trainings of one study."""
    points = ({"number": n, "f1": 0.9 - n / 100, "lr": 1e-4 * (n + 1)} for n in (0, 1))
    return rank([make_record(kind="final", seed=1, **point, **values) for point in points])


def draw(board, width, encoding="utf-8"):
    """What a terminal of that width shows."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render_table(board, width=width, encoding=encoding), crop=False)
    return console.file.getvalue()


def heading(text):
    """The column headers of a drawn table: the line above the rule."""
    lines = text.splitlines()
    rule = next(index for index, line in enumerate(lines) if set(line.strip()) in ({"─"}, {"-"}))
    return [part for part in re.split(r"\s{2,}", lines[rule - 1].strip()) if part]


def test_a_pipe_gets_every_column_however_wide():
    text = format_table(boards(backbone=LONG * 5))
    assert heading(text) == ORDER
    assert LONG * 5 in text
    assert max(map(len, text.splitlines())) > 250
    assert "\x1b" not in text


def test_the_caption_is_one_line_in_a_pipe():
    board = boards()[0]
    assert format_table([board]).splitlines()[0] == board.caption()


@pytest.mark.parametrize("width", [64, 80, 100, 120, 160, 200, 320])
def test_columns_leave_from_the_right_until_the_table_fits(width):
    text = draw(boards(backbone=LONG)[0], width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    shown = heading(text)
    assert [name for name in ORDER if name in shown] == shown
    missing = {name for name in ORDER if name not in shown}
    assert missing == set(LEAVING[: len(missing)])
    assert text.count(LONG) == 2


def test_the_widths_people_have():
    board = boards(backbone=LONG)[0]
    assert heading(draw(board, 80)) == ["#", "backbone", "val", "F1 [95 %]", "gap"]
    assert heading(draw(board, 120)) == [*ORDER[:5], *ORDER[7:12]]
    assert heading(draw(board, 200)) == [*ORDER[:6], *ORDER[7:16]]


def test_the_ranked_accuracy_stays_where_f1_leaves():
    finals = [make_record(kind="final", seed=1, backbone=LONG)]
    shown = heading(draw(rank(finals, metric="accuracy")[0], 80))
    assert "acc [95 %]" in shown
    assert "F1 [95 %]" not in shown


@pytest.mark.parametrize("width", [30, 40, 50, 60])
def test_a_backbone_that_does_not_fit_is_folded_never_cut(width):
    text = draw(boards(backbone=LONG)[0], width)
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.lstrip().startswith("1="))
    folded = "".join(line.split("90.0")[0].strip().removeprefix("1=").strip() for line in lines[start:])
    assert folded.startswith(LONG)
    assert "…" not in text
    assert "90.0 [88.0, 92.0]" in text
    assert all(cell_len(line) <= width for line in lines)


def test_the_floor_is_the_last_row_and_has_no_rank():
    last = format_table(boards()).splitlines()[-1]
    assert last.split() == ["majority", "class", "22.2", "50.0"]


def test_a_shared_rank_is_marked():
    labels = np.arange(600) % 3
    entries = [
        make_entry(answer(labels, accuracy, 1), labels, number=n, lr=1e-4 * (n + 1))
        for n, accuracy in enumerate((0.95, 0.7, 0.7))
    ]
    lines = format_table(ranking.rank(entries)).splitlines()[3:6]
    assert [line.split()[0] for line in lines] == ["1", "2=", "2="]


def test_a_val_board_has_neither_val_nor_gap():
    assert heading(format_table(rank([make_record()]))) == [n for n in ORDER if n not in ("val", "gap")]


def test_failed_seeds_spread_and_gap_are_shown():
    finals = [make_record(kind="final", seed=seed, f1=f1, val_f1=0.9) for seed, f1 in ((1, 0.8), (2, 0.84))]
    failed = make_record(kind="final", seed=3, state="failed", backbone="broken")
    text = format_table(rank([*finals, failed]))
    first, last = text.splitlines()[3:5]
    assert re.search(r"90\.0  82\.0 \[80\.0, 84\.0\]  \+8\.0 +2 +±2\.8", first)
    assert first.split()[0] == "1"
    assert last.split()[0] == "2!"
    assert re.search(r"22\.2 \[22\.2, 22\.2\] +\+0\.0 +0/1 ", last)


def test_an_encoding_without_box_lines_gets_ascii():
    ranked = boards(dataset="café")
    for text in (draw(ranked[0], 100, "ascii"), format_table(ranked, encoding="ascii")):
        assert text.isascii()
        assert "---" in text
        assert "caf\\xe9 | macro-F1" in text


def test_two_tables_are_separated():
    text = format_table([*boards(), *rank([make_record(init="scratch", study="s")])])
    assert text.count("\n\n") == 1
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_a_table(name):
    ranked = boards(backbone=name, dataset=name, device=name)
    for text in (format_table(ranked), draw(ranked[0], 80), draw(ranked[0], 200)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\x07" not in text
    assert "[bold]x" in format_table(boards(backbone="[bold]x"))
    assert len(format_table(boards(backbone=name)).splitlines()) == len(format_table(boards()).splitlines())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_markdown(name):
    text = format_markdown(boards(backbone=name, dataset=name))
    assert not set(text) & set("\x1b\x07\u202e")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == len(ORDER) + 1
        assert not re.search(r"(?<!\\)[\[\]<>]", row)


def test_markdown_does_not_turn_names_into_links_or_emphasis():
    names = {"backbone": "https://example.org/`x`_y_*z*", "loss": "www.example.org", "optimizer": "_a_b_"}
    text = format_markdown(boards(**names))
    assert "https\\://example.org/\\`x\\`\\_y\\_\\*z\\*" in text
    assert "www\\.example.org" in text
    assert "\\_a_b\\_" in text


def test_markdown_leaves_an_ordinary_backbone_readable():
    assert f"| {LONG} |" in format_markdown(boards(backbone=LONG))


def test_markdown_holds_caption_rows_and_floor():
    board = boards()[0]
    lines = format_markdown([board]).splitlines()
    assert lines[0] == board.caption()
    assert lines[2].startswith("| \\# | backbone | freeze |")
    assert lines[4].startswith("| 1= | resnet18.a1_in1k | 0.25 | 1.0e-4 | adamw | flip-crop | cross")
    assert lines[-1].startswith("|  | majority class |")


def test_csv_holds_every_column_in_full_precision():
    (row,) = csv.DictReader(io.StringIO(format_csv(rank([make_record(f1=1 / 3, lr=1e-5 / 3)]))))
    assert tuple(row) == COLUMNS
    assert float(row["f1"]) == 1 / 3
    assert float(row["lr"]) == 1e-5 / 3
    assert (row["dataset"], row["split"], row["study"]) == ("trashnet", "val", "demo")
    assert len(row["protocol"]) == 64


def test_csv_of_nothing_is_its_header():
    assert format_csv([]) == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1", "\uff1d1"])
def test_a_spreadsheet_takes_no_text_for_a_formula(name):
    ranked = rank([make_record(backbone=name, study=name, licence=name)])
    (row,) = csv.DictReader(io.StringIO(format_csv(ranked)))
    for column in ("backbone", "study", "licence"):
        assert row[column].startswith("'")


def test_csv_leaves_negative_numbers_alone():
    (row,) = csv.DictReader(io.StringIO(format_csv(rank([make_record(f1=0.01)]))))
    assert float(row["f1_low"]) == pytest.approx(-0.01)
    assert row["f1_low"].startswith("-")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_csv_and_json(name):
    ranked = rank([make_record(backbone=name, dataset=name)])
    text = format_csv(ranked)
    assert not set(text) & set("\x1b\x07\u202e")
    assert len(list(csv.DictReader(io.StringIO(text)))) == 1
    text = format_json(ranked)
    assert text.isascii()
    assert "\x1b" not in text
    (board,) = json.loads(text)["leaderboards"]
    assert board["dataset"] == board["rows"][0]["backbone"] == name


def test_json_names_its_schema_and_holds_the_floor():
    document = json.loads(format_json(boards()))
    assert document["schema"] == "harness.leaderboard/1"
    (board,) = document["leaderboards"]
    assert board["floor"] == {"label": "paper", "f1": pytest.approx(2 / 9), "accuracy": 0.5}
    assert board["rows"][0]["f1"] == 0.9
    assert board["outcomes"] == {}
    assert board["finals"] == {"complete": 2}
    assert json.loads(format_json([])) == {"schema": "harness.leaderboard/1", "leaderboards": []}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (640, "640"),
        (2565, "2.6 k"),
        (99_900, "99.9 k"),
        (99_990, "0.1 M"),
        (513_000, "0.5 M"),
        (11_200_000, "11.2 M"),
        (999_960_000, "1.0 G"),
        (1_100_000_000, "1.1 G"),
    ],
)
def test_counts_are_short(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0s"),
        (3.21, "3.2s"),
        (9.96, "10s"),
        (41.4, "41s"),
        (59.7, "1m00s"),
        (252, "4m12s"),
        (3599.6, "1h00m"),
        (3900, "1h05m"),
        (360_000, "100h00m"),
    ],
)
def test_durations_are_short(value, text):
    assert format_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.1e-4, "3.1e-4"), (0.001, "1.0e-3"), (9.96e-5, "1.0e-4"), (1, "1.0e0")]
)
def test_learning_rates_are_short(value, text):
    assert format_lr(value) == text


def test_print_boards_fits_a_terminal_and_fills_a_pipe(monkeypatch):
    ranked = boards(backbone=LONG)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    shown = {}
    for tty in (True, False):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(stdout, "isatty", lambda tty=tty: tty, raising=False)
        monkeypatch.setattr("sys.stdout", stdout)
        render.print_boards(ranked)
        stdout.flush()
        shown[tty] = stdout.buffer.getvalue().decode()
    assert heading(shown[True]) == ["#", "backbone", "val", "F1 [95 %]", "gap"]
    assert all(cell_len(line) <= 80 for line in shown[True].splitlines())
    assert heading(shown[False]) == ORDER


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("1. petals", r"1\. petals"),
        ("12) petals", r"12\) petals"),
        ("- petals", r"\- petals"),
        ("+ petals", r"\+ petals"),
        ("---", r"\---"),
        ("===", r"\==="),
        ("    petals", "petals"),
        ("3 petals", "3 petals"),
        ("1.5 petals", r"1\.5 petals"),
    ],
)
def test_a_caption_begins_no_list_or_block(name, shown):
    assert escape_paragraph(name) == shown


def test_columns_are_as_wide_as_a_terminal_shows_them():
    lines = [("name", "score"), ("\u65e5\u672c", "1.0"), ("e\u0301te", "10.0")]
    assert format_columns(lines) == "name  score\n\u65e5\u672c  1.0\ne\u0301te   10.0\n"
    assert format_columns(lines, left=(0,)) == "name  score\n\u65e5\u672c    1.0\ne\u0301te    10.0\n"
