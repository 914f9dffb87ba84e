"""Write a summary across data sets and a comparison of two runs, for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from harness.leaderboard.board import LABELS
from harness.leaderboard.comparison import Comparison, Side
from harness.leaderboard.summary import Standing, Summary
from harness.text import safe_text

SUMMARY_SCHEMA = "harness.leaderboard-summary/1"
COMPARISON_SCHEMA = "harness.leaderboard-comparison/1"


def format_summary(summary: Summary) -> str:
    """Write a summary as plain text: its caption, and a line for each backbone with its places."""
    shared = [standing.rank for standing in summary.standings]
    head = ("#", "backbone", "mean rank", "Borda", "win rate", *map(safe_text, summary.datasets))
    lines = [head, *(_standing(item, shared.count(item.rank) > 1) for item in summary.standings)]
    return f"{safe_text(summary.caption())}\n\n{format_columns(lines, left=(1,))}"


def _standing(item: Standing, is_shared: bool) -> tuple[str, ...]:
    return (
        f"{item.rank}{'=' * is_shared}",
        safe_text(item.backbone),
        f"{item.mean_rank:.2f}",
        f"{item.borda:g}",
        f"{100 * item.win_rate:.0f} %",
        *(f"{place:g}" for place in item.places),
    )


def format_summaries_json(summaries: Iterable[Summary]) -> str:
    """Write summaries as one JSON document."""
    body = {"schema": SUMMARY_SCHEMA, "summaries": [dataclasses.asdict(summary) for summary in summaries]}
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def format_comparison(found: Comparison) -> str:
    """Write a comparison as plain text, in percent."""
    difference = found.difference
    low, high = (f"{100 * bound:+.1f}" for bound in difference.interval)
    how = "on the same images, paired" if difference.paired else "unpaired: predictions are missing"
    label = LABELS[found.metric]
    verdict = "they differ" if difference.is_clear else "they cannot be told apart"
    lines = [
        f"{safe_text(found.dataset)} · {label} on {found.split} ({found.images} images) · "
        f"protocol {found.protocol[:8]}",
        *format_columns([_side("A", found.one), _side("B", found.other)]).splitlines(),
        f"A - B  {100 * difference.estimate:+.1f} [{low}, {high}]  p {_p(difference.p)}  ({how})",
        f"{verdict} at 95 %",
    ]
    if found.one.trainings == found.other.trainings == 1:
        lines.append("one seed each: this compares two trained models, and says nothing of other seeds")
    return "\n".join(lines) + "\n"


def _side(letter: str, side: Side) -> tuple[str, ...]:
    seeds = f"{side.trainings} seed" + "s" * (side.trainings != 1)
    failed = f", {side.failed} failed" if side.failed else ""
    name = f"{safe_text(side.study)}/{side.number}"
    return (letter, f"{100 * side.score:.1f}", name, safe_text(side.backbone), seeds + failed)


def format_columns(lines: Sequence[Sequence[str]], left: Sequence[int] | None = None) -> str:
    """Write lines of cells below each other, in columns as wide as a terminal shows them.

    Args:
        lines: As many cells in each, made safe.
        left: Numbers of the columns that are flush left, the others right; default: all are.
    """
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = []
        for index, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(cell + space if left is None or index in left else space + cell)
        texts.append(f"{'  '.join(cells).rstrip()}\n")
    return "".join(texts)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def format_comparison_json(found: Comparison) -> str:
    """Write a comparison as one JSON document, in full precision."""
    body = {"schema": COMPARISON_SCHEMA, **dataclasses.asdict(found)}
    body["difference"]["is_clear"] = found.difference.is_clear
    return json.dumps(body, indent=2, allow_nan=False) + "\n"
