"""Write the leaderboard as one HTML page that holds all it needs and asks nobody for anything.

The tables are in the page and readable without scripts. What a script draws (the panel of a run, the plot of
cost against score) it draws from the page's own data. A policy in the page allows its one style sheet and its
scripts by their hashes and forbids everything else, requests to anywhere included.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from harness import __version__
from harness.documents import canonical
from harness.leaderboard.board import LABELS, Leaderboard, Row
from harness.leaderboard.entry import TIERS, Tier
from harness.leaderboard.panel import Json
from harness.leaderboard.render import format_count, format_lr, format_score, format_seconds
from harness.leaderboard.summary import Summary
from harness.records import CostRecord, Metric, TrialConfig
from harness.text import counted, safe_text

METRICS: tuple[Metric, ...] = ("f1", "accuracy")
WIDTH = 120
"""Of the drawing of an interval, in its own units."""
MARGIN = 6
_SCRIPTS = ("plot.js", "panel.js", "page.js")
MEANINGS: Mapping[Tier, str] = {
    "self-reported": "The numbers are as stated; nothing to recompute them from was published.",
    "recomputed": "Every score was computed again from the published predictions.",
    "re-run": "All its trainings were done again and came out the same, as whoever did that states.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The range of scores that the intervals of one table are drawn in."""

    low: float
    high: float

    @staticmethod
    def over(intervals: Iterable[tuple[float, float]]) -> Scale:
        """Return the range of round percentages that holds all intervals."""
        bounds = [bound for interval in intervals for bound in interval]
        low, high = min(bounds), max(bounds)
        step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if high - low <= 6 * step), 0.5)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return Scale(low=low, high=high if high > low else low + step)

    def place(self, value: float) -> float:
        """Return where a score is drawn, from `MARGIN` to `WIDTH - MARGIN`."""
        share = (value - self.low) / (self.high - self.low)
        return MARGIN + share * (WIDTH - 2 * MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One leaderboard on the page, in both orders."""

    id: str
    board: Leaderboard
    """Ranked by macro-F1: the order in which the rows stand."""
    ranks: Mapping[Metric, Mapping[str, str]]
    """By run, best first, as shown: `2=` where a rank is shared, `2!` where trainings failed."""
    scales: Mapping[Metric, Scale]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tab:
    """All leaderboards of one data set."""

    id: str
    dataset: str
    tables: tuple[Table, ...]

    @property
    def runs(self) -> int:
        """Return how many rows there are."""
        return sum(len(table.board.rows) for table in self.tables)


def render_page(
    boards: Mapping[Metric, Sequence[Leaderboard]],
    *,
    summaries: Sequence[Summary],
    runs: Mapping[str, Json],
    shared: Sequence[Json],
    rejected: Sequence[tuple[str, str]],
) -> str:
    """Write the page.

    Args:
        boards: The same runs ranked by each metric.
        summaries: Backbones across data sets.
        runs: By bundle, what its panel shows: `harness.leaderboard.panel.summarise_run`.
        shared: What these have in common.
        rejected: File and reason of each bundle that is not ranked.
    """
    tabs = _tabs(boards)
    data = _data(tabs, runs, shared)
    style = _template_text("page.css")
    scripts = [_template_text(name) for name in _SCRIPTS]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash_of(style)}",
            f"script-src {' '.join(_hash_of(script) for script in scripts)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            tabs=tabs,
            summaries=summaries,
            rejected=rejected,
            policy=Markup(policy),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(embed(data)),
            tiers=[(tier, MEANINGS[tier]) for tier in TIERS],
            metrics=LABELS,
            total=sum(tab.runs for tab in tabs),
            has_failed=any(row.failed for board in boards["f1"] for row in board.rows),
            version=__version__,
        )
    )


def embed(value: Json) -> str:
    """Write JSON that can stand in a script element, whatever it holds: in ASCII, without `<`, `>`, `&`."""
    return re.sub(r"[<>&]|[^\x20-\x7e]", _escape, canonical(value))


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _tabs(boards: Mapping[Metric, Sequence[Leaderboard]]) -> list[Tab]:
    others = {_key(board): board for board in boards["accuracy"]}
    found: dict[str, list[Table]] = {}
    for number, board in enumerate(boards["f1"]):
        table = Table(
            id=f"board-{number}",
            board=board,
            ranks={"f1": _ranks(board), "accuracy": _ranks(others[_key(board)])},
            scales={
                "f1": Scale.over(row.f1_interval for row in board.rows),
                "accuracy": Scale.over(row.accuracy_interval for row in board.rows),
            },
        )
        found.setdefault(board.dataset, []).append(table)
    return [
        Tab(id=address, dataset=name, tables=tuple(tables))
        for address, (name, tables) in zip(_addresses(found), found.items(), strict=True)
    ]


def _addresses(names: Iterable[str]) -> list[str]:
    """Return what data sets are called in the page's address; links to them last as long as their names."""
    found: list[str] = []
    for name in names:
        plain = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in name).lower()
        address = f"data-{plain.strip('-')[:40] or 'set'}"
        same = sum(other == address or other.startswith(f"{address}--") for other in found)
        found.append(f"{address}--{same + 1}" if same else address)
    return found


def _key(board: Leaderboard) -> tuple[str, str, str]:
    return board.dataset, board.protocol, board.init


def _ranks(board: Leaderboard) -> dict[str, str]:
    counts: dict[int, int] = {}
    for row in board.rows:
        counts[row.rank] = counts.get(row.rank, 0) + 1
    return {
        row.source: f"{row.rank}{'=' * (counts[row.rank] > 1)}{'!' * (row.failed > 0)}" for row in board.rows
    }


def _data(tabs: Sequence[Tab], runs: Mapping[str, Json], shared: Sequence[Json]) -> Json:
    """Return what the scripts know: boards, runs by the id of their rows, and what these share."""
    tables = [table for tab in tabs for table in tab.tables]
    places = {
        (metric, source): place
        for table in tables
        for metric in METRICS
        for place, source in enumerate(table.ranks[metric])
    }
    return {
        "fields": {
            "config": [item.name for item in dataclasses.fields(TrialConfig)],
            "cost": [item.name for item in dataclasses.fields(CostRecord)],
        },
        "shared": shared,
        "boards": {
            table.id: {
                "dataset": safe_text(table.board.dataset),
                "split": table.board.split,
                "classes": [safe_text(name) for name in table.board.classes],
                "protocol": table.board.protocol,
                "floor": None
                if table.board.floor is None
                else {"f1": table.board.floor.f1, "accuracy": table.board.floor.accuracy},
            }
            for table in tables
        },
        "runs": {
            run_id(row): {
                **runs[row.source],
                "board": table.id,
                "digest": row.source,
                "tier": row.tier,
                "ranks": [table.ranks[metric][row.source] for metric in METRICS],
                "places": [places[metric, row.source] for metric in METRICS],
                "f1": _millionths(row.f1, *row.f1_interval),
                "accuracy": _millionths(row.accuracy, *row.accuracy_interval),
                "seconds": None if row.seconds is None else float(f"{row.seconds:.4g}"),
                "device": safe_text(row.device),
            }
            for table in tables
            for row in table.board.rows
        },
    }


def _millionths(*shares: float) -> list[int]:
    """Return scores as the tables have them: rounded once more to tenths of a percent, they stay the same."""
    return [round(1_000_000 * share) for share in shares]


def run_id(row: Row) -> str:
    """Return what a run is called in the page's address: the beginning of its bundle's digest."""
    return row.source[:16]


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _template_text(name: str) -> str:
    return (resources.files("harness.leaderboard") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_inert,
    )
    environment.filters |= {
        "score": format_score,
        "count": format_count,
        "seconds": format_seconds,
        "lr": format_lr,
        "run_id": run_id,
        "plural": counted,
        "breakable": _breakable,
    }
    environment.globals |= {"mark": _mark, "width": WIDTH}
    return environment


def _inert(value: Any) -> Any:
    """Make the signs of foreign text visible before it is escaped."""
    return safe_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """Let a name break where its parts meet, rather than anywhere."""
    return Markup("<wbr>").join(re.split(r"(?<=[._/-])(?=.)", safe_text(name)))


def _mark(scale: Scale, value: float, interval: tuple[float, float]) -> Markup:
    """Draw an interval as a band and the score as a line in it, in an SVG that is `WIDTH` wide."""
    low, at, high = (f"{scale.place(x):.1f}".removesuffix(".0") for x in (interval[0], value, interval[1]))
    return Markup('<path d="M{} 9H{}"/><path d="M{} 9h2"/>').format(low, high, at)
