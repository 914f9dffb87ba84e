"""Backbones across data sets: mean rank, Borda points and win rate where all of them were ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.leaderboard.board import Leaderboard
from harness.records import Metric

MOST = 1000
"""Blocks that are weighed against each other: there may be as many as choices of backbones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One backbone across the data sets of a summary."""

    rank: int
    """By mean rank; equals share it."""
    backbone: str
    mean_rank: float
    """Those that share a rank on a data set have the mean of the places they take."""
    borda: float
    """Points: one for each rival behind it on each data set, half a point where they share a rank."""
    win_rate: float
    """Share of rivals and data sets at which it is clearly ahead: shared ranks are no wins."""
    places: tuple[float, ...]
    """On each data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Backbones that were ranked on the same data sets, best first."""

    metric: Metric
    init: str
    datasets: tuple[str, ...]
    standings: tuple[Standing, ...]
    left_out_datasets: tuple[str, ...]
    """On which not all of these backbones were ranked."""
    left_out_backbones: tuple[str, ...]
    """Ranked on some of these data sets only."""

    def caption(self) -> str:
        """Say in one line what is summarised and what is left out; names in it are as recorded."""
        parts = [
            f"{len(self.standings)} backbones across {len(self.datasets)} data sets",
            ", ".join(self.datasets),
            f"by {self.metric}" + (", from scratch" if self.init == "scratch" else ""),
        ]
        for what, names in (("data sets", self.left_out_datasets), ("backbones", self.left_out_backbones)):
            parts += [f"left out {what}: {', '.join(names)}"] if names else []
        return " · ".join(parts)


def summarise(boards: Iterable[Leaderboard]) -> Summary | None:
    """Summarise leaderboards by backbone, of one metric and one kind of initialisation.

    The rows and data sets are the largest block without a gap: backbones that were all ranked on all of the
    data sets. Of equal blocks the one with more data sets is taken. The order of the boards has no influence.
    Where holes are so many that more than `MOST` blocks are in question, those that look largest are.

    Args:
        boards: One for each data set; protocols of a data set count as data sets of their own.

    Returns:
        The summary, or None where no two backbones share two data sets.

    Raises:
        ValueError: Boards are of runs, or of several metrics or initialisations.
    """
    known = sorted(boards, key=lambda board: (board.dataset, board.protocol))
    if any(board.by != "backbone" for board in known) or len({(b.metric, b.init) for b in known}) > 1:
        raise ValueError("boards must be by backbone, of one metric and one initialisation")
    ranks = {_name(board, known): {row.backbone: row.rank for row in board.rows} for board in known}
    names = sorted({name for found in ranks.values() for name in found})
    homes = {name: frozenset(data for data, found in ranks.items() if name in found) for name in names}
    chosen = _largest_block(list(homes.values()))
    if chosen is None:
        return None
    backbones = [name for name in names if chosen <= homes[name]]
    datasets = tuple(name for name in ranks if name in chosen)
    return Summary(
        metric=known[0].metric,
        init=known[0].init,
        datasets=datasets,
        standings=tuple(_standings(backbones, [ranks[name] for name in datasets])),
        left_out_datasets=tuple(name for name in ranks if name not in chosen),
        left_out_backbones=tuple(name for name in names if name not in backbones),
    )


def _largest_block(homes: Sequence[frozenset[str]]) -> frozenset[str] | None:
    """Return the data sets of the largest block, two by two at least; `homes` are those of each backbone."""

    def order(data: frozenset[str]) -> tuple[int, int, list[str]]:
        return -len(data) * sum(data <= home for home in homes), -len(data), sorted(data)

    # The data sets that some backbones have in common, for any choice of backbones.
    found: set[frozenset[str]] = set()
    for home in sorted({*homes}, key=sorted):
        found |= {home, *(home & other for other in found)}
        found = {data for data in found if len(data) > 1}
        if len(found) > MOST:
            found = {*sorted(found, key=order)[:MOST]}
    blocks = [data for data in found if sum(data <= home for home in homes) > 1]
    return min(blocks, key=order, default=None)


def _name(board: Leaderboard, boards: list[Leaderboard]) -> str:
    alone = sum(other.dataset == board.dataset for other in boards) == 1
    return board.dataset if alone else f"{board.dataset} ({board.protocol[:8]})"


def _standings(backbones: list[str], ranks: list[Mapping[str, int]]) -> list[Standing]:
    rivals = len(backbones) - 1
    found: list[tuple[float, str, float, float, tuple[float, ...]]] = []
    for name in backbones:
        wins, ties = [], []
        for rank in ranks:
            wins.append(sum(rank[name] < rank[other] for other in backbones))
            ties.append(sum(rank[name] == rank[other] for other in backbones) - 1)
        places = tuple(rivals - won - tied / 2 + 1 for won, tied in zip(wins, ties, strict=True))
        borda = sum(wins) + sum(ties) / 2
        # Halves: sums of them are exact in any order.
        found.append((sum(places) / len(places), name, borda, sum(wins) / (rivals * len(ranks)), places))
    found.sort()
    standings: list[Standing] = []
    for mean_rank, name, borda, win_rate, places in found:
        ahead = [other for other in found if other[0] < mean_rank]
        standings.append(
            Standing(
                rank=len(ahead) + 1,
                backbone=name,
                mean_rank=mean_rank,
                borda=borda,
                win_rate=win_rate,
                places=places,
            )
        )
    return standings
