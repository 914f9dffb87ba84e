"""Write leaderboards as LaTeX tables, in the rules of booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from harness.leaderboard.board import LABELS, Floor, Leaderboard, Row
from harness.leaderboard.render import FLOOR, format_count, format_lr, format_score, format_seconds
from harness.text import safe_text

PREAMBLE = """\
% Needs \\usepackage[T1]{fontenc}, \\usepackage{textcomp} and \\usepackage{booktabs}.
"""
_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    # At the start of a row these would belong to the command that ended the one before.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\u00a0": "~",
}
_HEADS = (r"\#", "Backbone", "Freeze", "lr", "Optimizer", "Augment", "macro-F1 (\\%)", "Accuracy (\\%)")
_TAIL = ("Params", "Train")


def escape_latex(value: object) -> str:
    """Return text that LaTeX sets as it is; control and direction-changing signs are shown by number."""
    text = "".join(
        f"\\textless{{}}U+{ord(sign):04X}\\textgreater{{}}"
        if unicodedata.category(sign)[0] == "C" or safe_text(sign) != sign
        else _SIGNS.get(sign, sign)
        for sign in str(value)
    )
    # Two of these in a row are another sign, and two spaces are one.
    return re.sub(r"([-,])(?=\1)", r"\1{}", text).replace("  ", " \\ ")


def format_latex(boards: Iterable[Leaderboard]) -> str:
    """Write each leaderboard as a `table` of its main columns, with the origin of its weights below."""
    return "\n".join([PREAMBLE, *(_table(board) for board in boards)])


def _table(board: Leaderboard) -> str:
    lines = [_line(row, board) for row in board.rows]
    if board.floor:
        lines += [r"\midrule", _floor_line(board.floor)]
    images = f"{board.counts.get(board.split, 0)} images, {len(board.classes)} classes"
    weights = "pretrained" if board.init == "pretrained" else "no pretrained weights"
    rows = "\n".join(f"    {line}" for line in lines)
    return rf"""\begin{{table}}
  \centering
  \caption{{{escape_latex(board.dataset)}: {LABELS[board.metric]} on {board.split} ({images}), {weights};
    95\,\% intervals; protocol {board.protocol[:8]}.}}
  \label{{tab:{_label(board)}}}
  \begin{{tabular}}{{@{{}}rlrrllrrrr@{{}}}}
    \toprule
    {" & ".join([*_HEADS, *_TAIL])} \\
    \midrule
{rows}
    \bottomrule
  \end{{tabular}}

  \smallskip
  \footnotesize {_origin(board)}
\end{{table}}
"""


def _line(row: Row, board: Leaderboard) -> str:
    shared = sum(other.rank == row.rank for other in board.rows) > 1
    f1, accuracy = format_score(row.f1, row.f1_interval), format_score(row.accuracy, row.accuracy_interval)
    if row.rank == 1:
        ranked, plain = (f1, accuracy) if board.metric == "f1" else (accuracy, f1)
        ranked = rf"\textbf{{{ranked}}}"
        f1, accuracy = (ranked, plain) if board.metric == "f1" else (plain, ranked)
    cells = [
        f"{row.rank}{'=' * shared}{'!' * (row.failed > 0)}",
        escape_latex(row.backbone),
        f"{row.freeze_depth:.2f}",
        escape_latex(format_lr(row.lr)),
        escape_latex(row.optimizer),
        escape_latex(row.augmentation),
        f1,
        accuracy,
        "--" if row.params is None else format_count(row.params).replace(" ", r"\,"),
        "--" if row.seconds is None else format_seconds(row.seconds),
    ]
    return " & ".join(cells) + r" \\"


def _floor_line(floor: Floor) -> str:
    name = f"{FLOOR} ({escape_latex(floor.label)})"
    cells = ["", name, "", "", "", "", format_score(floor.f1), format_score(floor.accuracy), "", ""]
    return " & ".join(cells) + r" \\"


def _origin(board: Leaderboard) -> str:
    """Say for each backbone whose plugin and weights it is, and which studies the runs are of."""
    homes = {row.backbone: (row.plugin or "unknown plugin", row.licence) for row in board.rows}
    weights = "; ".join(
        f"{escape_latex(name)} ({escape_latex(plugin)}, weights {escape_latex(licence)})"
        for name, (plugin, licence) in sorted(homes.items())
    )
    studies = "; ".join(escape_latex(name) for name in sorted({row.study for row in board.rows}))
    failed = " !: failed trainings count as the floor." if any(row.failed for row in board.rows) else ""
    return f"Backbones: {weights}. Studies: {studies}.{failed}"


def _label(board: Leaderboard) -> str:
    plain = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in board.dataset)
    return f"{plain.strip('-')[:40] or 'dataset'}-{board.protocol[:8]}-{board.init}"
