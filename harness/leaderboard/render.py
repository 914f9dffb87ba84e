"""Show leaderboards: in a terminal, in a pipe, as Markdown, CSV and JSON.

Names in records come from strangers: each format makes them inert in its own way.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.leaderboard.board import COLUMNS, Cell, Floor, Leaderboard, Row
from harness.records import Metric
from harness.text import safe_text

SCHEMA = "harness.leaderboard/1"
FLOOR = "majority class"
GAP = 2
"""Cells between two columns."""
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    name: str
    header: str
    cell: Callable[[Row], str]
    numeric: bool = False


def format_score(value: float, interval: tuple[float, float] | None = None) -> str:
    """Write a score in [0, 1] in percent: `93.4 [92.8, 94.0]`."""
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f}{bounds}"


def format_count(value: int) -> str:
    """Write a number of parameters: `11.2 M`, `2.6 k`, `640`."""
    # Millions from a tenth on, so that 513,000 reads 0.5 M beside its 11.2 M; limits as rounding sees them.
    for unit, size, least in (("G", 1e9, 999_950_000), ("M", 1e6, 99_950), ("k", 1e3, 1000)):
        if value >= least:
            return f"{value / size:.1f} {unit}"
    return str(value)


def format_seconds(value: float) -> str:
    """Write a duration: `3.2s`, `41s`, `4m12s`, `1h05m`."""
    if value < 9.95:
        return f"{value:.1f}s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def format_lr(value: float) -> str:
    """Write a learning rate: `3.1e-4`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _params(row: Row) -> str:
    if row.params is None or row.trainable is None:
        return "-"
    return f"{format_count(row.params)} ({format_count(row.trainable)})"


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def _seeds(row: Row) -> str:
    return f"{row.seeds}/{row.seeds + row.failed}" if row.failed else str(row.seeds)


def _score_column(metric: Metric) -> _Column:
    if metric == "f1":
        return _Column(name="f1", header="F1 [95 %]", cell=lambda row: format_score(row.f1, row.f1_interval))
    return _Column(
        name="accuracy",
        header="acc [95 %]",
        cell=lambda row: format_score(row.accuracy, row.accuracy_interval),
    )


_CONFIG = (
    _Column(name="rank", header="#", cell=lambda row: str(row.rank), numeric=True),
    _Column(name="backbone", header="backbone", cell=lambda row: row.backbone),
    _Column(name="freeze_depth", header="freeze", cell=lambda row: f"{row.freeze_depth:.2f}", numeric=True),
    _Column(name="lr", header="lr", cell=lambda row: format_lr(row.lr), numeric=True),
    _Column(name="optimizer", header="optimizer", cell=lambda row: row.optimizer),
    _Column(name="augmentation", header="augment", cell=lambda row: row.augmentation),
    _Column(name="loss", header="loss", cell=lambda row: row.loss),
)
_VAL = _Column(name="val", header="val", cell=lambda row: _percent(row.val), numeric=True)
_GAP = _Column(name="gap", header="gap", cell=lambda row: _percent(row.gap, "+"), numeric=True)
_FACTS = (
    _Column(name="params", header="params (trainable)", cell=_params, numeric=True),
    _Column(
        name="seconds",
        header="train",
        cell=lambda row: "-" if row.seconds is None else format_seconds(row.seconds),
        numeric=True,
    ),
    _Column(name="tier", header="tier", cell=lambda row: row.tier),
    _Column(name="device", header="device", cell=lambda row: row.device or "-"),
    _Column(name="plugin", header="plugin", cell=lambda row: row.plugin or "-"),
    _Column(name="licence", header="weights licence", cell=lambda row: row.licence),
    _Column(name="image_size", header="px", cell=lambda row: str(row.image_size), numeric=True),
    _Column(name="epochs", header="epochs", cell=lambda row: str(row.epochs), numeric=True),
    _Column(name="study", header="study", cell=lambda row: row.study),
)
_LEAVING = (
    *("study", "epochs", "image_size", "licence", "plugin", "device", "loss", "augmentation", "tier"),
    *("seconds", "params", "accuracy", "f1", "optimizer", "spread", "seeds", "lr", "freeze_depth"),
    *("gap", "val"),
)
"""Columns in the order in which a narrow terminal loses them, but for the ranked score."""


def _columns(board: Leaderboard) -> tuple[_Column, ...]:
    """Return all columns of a board: on test the score on val and the gap stand around the ranked one."""

    def spread(row: Row) -> str:
        value = row.f1_spread if board.metric == "f1" else row.accuracy_spread
        return "-" if value is None else f"±{100 * value:.1f}"

    ranked, other = _score_column(board.metric), _score_column("accuracy" if board.metric == "f1" else "f1")
    scores = (_VAL, ranked, _GAP) if board.split == "test" else (ranked,)
    of_seeds = (
        _Column(name="seeds", header="seeds", cell=_seeds, numeric=True),
        _Column(name="spread", header="spread", cell=spread, numeric=True),
    )
    return (*_CONFIG, *scores, *of_seeds, other, *_FACTS)


def _cells(board: Leaderboard) -> list[list[str]]:
    """Return the shown text of every row, the floor last; names are as recorded."""
    columns = _columns(board)
    shared = Counter(row.rank for row in board.rows)
    lines = [[column.cell(row) for column in columns] for row in board.rows]
    for row, line in zip(board.rows, lines, strict=True):
        line[0] += "=" * (shared[row.rank] > 1) + "!" * (row.failed > 0)
    if board.floor:
        lines.append([_floor_cell(board.floor, column.name) for column in columns])
    return lines


def _floor_cell(floor: Floor, column: str) -> str:
    if column in ("f1", "accuracy"):
        return format_score(floor.f1 if column == "f1" else floor.accuracy)
    return FLOOR if column == "backbone" else ""


def _printable(value: str, encoding: str) -> str:
    """Make text inert, and write what the encoding lacks as an escape."""
    text = safe_text(value)
    if not encoding.lower().startswith("utf"):
        text = text.replace(" · ", " | ").encode(encoding, "backslashreplace").decode(encoding)
    return text


def render_table(board: Leaderboard, *, width: int | None = None, encoding: str = "utf-8") -> RenderableType:
    """Draw a leaderboard for a terminal: its caption, its rows and, last and without a rank, the floor.

    Columns are left out until the table fits: study, epochs, px, weights licence, plugin, device, loss,
    augment, tier, train, params, the score not ranked, optimizer, spread, seeds, lr, freeze, gap, val. Rank,
    backbone and the ranked score stay; a backbone's name that still does not fit is folded over lines, never
    cut.

    Args:
        board: What to draw.
        width: Cells available; None draws every column, however wide.
        encoding: Of the output. What it cannot hold is escaped; any but UTF gets ASCII rules.
    """
    columns = _columns(board)
    lines = [[_printable(cell, encoding) for cell in line] for line in _cells(board)]
    widths = [
        max(cell_len(text) for text in (column.header, *(line[index] for line in lines)))
        for index, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    place = {column.name: index for index, column in enumerate(columns)}
    for name in _LEAVING:
        if width is None or _total(widths, shown) <= width:
            break
        if name in place and name != board.metric:
            shown.remove(place[name])
    fits = width is None or _total(widths, shown) <= width
    table = Table(
        box=SIMPLE_HEAD if encoding.lower().startswith("utf") else _ASCII_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        # Of its own, so that a console that believes to be narrower cuts nothing.
        width=_total(widths, shown) if fits else width,
        header_style="bold",
    )
    for index in shown:
        column = columns[index]
        table.add_column(
            Text(column.header),
            justify="right" if column.numeric else "left",
            no_wrap=fits or column.name != "backbone",
            overflow="fold",
        )
    for number, line in enumerate(lines):
        style = "dim" if number == len(board.rows) else "bold" if board.rows[number].rank == 1 else ""
        table.add_row(*(Text(line[index]) for index in shown), style=style)
    caption = Text(_printable(board.caption(), encoding), overflow="fold", no_wrap=width is None)
    if width is None:
        caption.overflow = "ignore"
    return Group(caption, table)


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[index] for index in shown) + GAP * (len(shown) - 1)


def format_table(boards: Iterable[Leaderboard], *, encoding: str = "utf-8") -> str:
    """Write leaderboards as plain text of every column and any width, as a pipe or a file wants them."""
    console = Console(file=io.StringIO(), color_system=None, force_terminal=False, legacy_windows=False)
    texts = []
    for board in boards:
        with console.capture() as capture:
            console.print(render_table(board, encoding=encoding), crop=False)
        texts.append("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
    return "\n".join(texts)


def print_boards(boards: Sequence[Leaderboard]) -> None:
    """Print leaderboards to stdout: fitted to a terminal, in full to a pipe or a file."""
    if not sys.stdout.isatty():
        sys.stdout.write(format_table(boards, encoding=sys.stdout.encoding or "utf-8"))
        return
    console = Console()
    for number, board in enumerate(boards):
        if number:
            console.print()
        console.print(render_table(board, width=console.width, encoding=console.encoding), crop=False)


def format_markdown(boards: Iterable[Leaderboard]) -> str:
    """Write leaderboards as GitHub-flavoured Markdown tables, each below its caption."""
    parts = []
    for board in boards:
        heads = [escape_markdown(column.header) for column in _columns(board)]
        rules = ["---:" if column.numeric else "---" for column in _columns(board)]
        rows = [[escape_markdown(cell) for cell in line] for line in _cells(board)]
        table = "".join(f"| {' | '.join(line)} |\n" for line in (heads, rules, *rows))
        parts.append(f"{escape_paragraph(board.caption())}\n\n{table}")
    return "\n".join(parts)


def escape_markdown(value: str) -> str:
    """Write text so that Markdown shows it as it is."""
    text = re.sub(r"[\\`*{}\[\]<>|~$&#!]", r"\\\g<0>", safe_text(value))
    # Inside a word an underscore means nothing, and escaping it would make every backbone hard to read.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # No name becomes a link by itself.
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", text, flags=re.IGNORECASE)


def escape_paragraph(value: str) -> str:
    """Write text that begins a line of Markdown, so that it is no item of a list, rule or block."""
    text = escape_markdown(value).lstrip()
    return re.sub(r"^(\d*)(?=[-+=.)])", r"\1\\", text)


def format_csv(boards: Iterable[Leaderboard]) -> str:
    """Write all rows as one CSV table of every column in full precision, without floors.

    Text that a spreadsheet would take for a formula gets a leading apostrophe; numbers stay as they are.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for board in boards:
        for row in board.table():
            writer.writerow({name: _csv(cell) for name, cell in row.items()})
    return file.getvalue()


def _csv(value: Cell) -> Cell:
    if not isinstance(value, str):
        return value
    # Spreadsheets skip leading white space, and some read full-width signs as their plain forms.
    start = unicodedata.normalize("NFKC", value.lstrip())[:1]
    formula = start in ("=", "+", "-", "@") or value[:1] in ("\t", "\r", "\n")
    return f"'{safe_text(value)}" if formula else safe_text(value)


def format_json(boards: Iterable[Leaderboard]) -> str:
    """Write leaderboards as one JSON document in full precision; names stand in it as recorded, in ASCII."""
    document = {
        "schema": SCHEMA,
        "leaderboards": [{**dataclasses.asdict(board), "caption": board.caption()} for board in boards],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
