"""What publishing needs of ranking and verifying, over the functions that are here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.leaderboard import rank as ranking
from harness.leaderboard.board import By, Leaderboard, Row
from harness.leaderboard.entry import Entry, Tier
from harness.records import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow(Row):
    """A row that says which bundle it is."""

    source: str
    tier: Tier


def rank(
    entries: Iterable[Entry],
    *,
    metric: Metric = "f1",
    by: By = "run",
    split: Literal["auto", "val", "test"] = "auto",
    dataset: str | None = None,
) -> list[Leaderboard]:
    """Rank entries; each bundle is a run of its own, whatever its study is called."""
    found = {entry.source: entry for entry in entries}
    records = [dataclasses.replace(entry.record, study=entry.source) for entry in entries]
    return [
        dataclasses.replace(board, rows=tuple(_published(row, found[row.study]) for row in board.rows))
        for board in ranking.rank(records, metric=metric, by=by, split=split, dataset=dataset)
    ]


def _published(row: Row, entry: Entry) -> PublishedRow:
    values = {item.name: getattr(row, item.name) for item in dataclasses.fields(row)}
    return PublishedRow(**{**values, "study": entry.record.study}, source=entry.source, tier=entry.tier)


def plain(boards: Iterable[Leaderboard]) -> list[Leaderboard]:
    """Return boards of plain rows, as `harness.leaderboard.render` writes them."""
    names = [item.name for item in dataclasses.fields(Row)]
    return [
        dataclasses.replace(
            board, rows=tuple(Row(**{name: getattr(row, name) for name in names}) for row in board.rows)
        )
        for board in boards
    ]
