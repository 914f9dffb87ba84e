"""Rank runs: one table for each data set, protocol, split and way of initialising.

Rows that cannot be told apart share a rank. Groups are formed from the top: the best score leads the first,
and each row whose difference to the leader may be 0 joins it; the best of those left leads the next. Being
told apart is not transitive, so two rows of neighbouring groups may be as close as two of one. But each row
is compared with one that stands for its group, a group never holds a row clearly behind its leader, and no
row between decides whether two others share a rank, as it would if rows were chained.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.documents import digest
from harness.errors import StorageError, UnknownNameError
from harness.leaderboard.board import By, Leaderboard, Row
from harness.leaderboard.entry import TIERS, Entry, entry_of
from harness.leaderboard.protocols import name_differences
from harness.leaderboard.runs import Run, find_floor, gather_runs, init_of, mean
from harness.leaderboard.statistics import Bootstrap, Sample
from harness.records import Metric, Protocol, read_record

__all__ = ["Leaderboard", "Row", "load", "rank"]

TIE = 1e-12
"""Scores no further apart than this share a rank, whatever the statistics say."""


def load(runs: Path) -> tuple[list[Entry], list[str]]:
    """Read all records of all studies under a folder; their predictions are read when a rank needs them.

    Returns:
        The entries, and one line for each record that is damaged, with its path and the reason.
    """
    entries, problems = [], []
    for part in ("trials", "finals"):
        for path in sorted(runs.glob(f"*/{part}/*/record.json")):
            try:
                entries.append(entry_of(path.parent, read_record(path)))
            except StorageError as error:
                problems.append(f"{path}: {error.what}" + (f" ({error.why})" if error.why else ""))
    return entries, problems


def rank(
    entries: Iterable[Entry],
    *,
    metric: Metric = "f1",
    by: By = "run",
    split: Literal["auto", "val", "test"] = "auto",
    dataset: str | None = None,
) -> list[Leaderboard]:
    """Rank runs, in as many tables as there are sets of comparable ones.

    Rows of different data sets, protocols or kinds of initialisation never share a table. A table without a
    row is left out. The order of `entries` has no influence.

    Args:
        entries: Of any studies, in any state; an entry that is there twice counts once, in its higher tier.
        metric: What decides the order: macro-F1 or accuracy.
        by: `run` gives each configuration of a study a row; `backbone` keeps each backbone's best run, chosen
            on the validation split so that the test split decides nothing.
        split: `test` ranks final trainings, `val` the trials of the search, `auto` the former where there
            are any.
        dataset: Only this one.

    Raises:
        UnknownNameError: There are entries, but none of that data set.
    """
    unique: dict[tuple[Any, ...], Entry] = {}
    for entry in sorted(entries, key=lambda entry: TIERS.index(entry.tier)):
        unique[_identity(entry)] = entry
    protocols: dict[str, dict[str, Protocol]] = {e.record.dataset.name: {} for e in unique.values()}
    groups: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for _, entry in sorted(unique.items(), key=lambda item: item[0]):
        record = entry.record
        if record.state == "complete":
            protocols[record.dataset.name][record.protocol.digest] = record.protocol
        groups[record.dataset.name, record.protocol.digest, init_of(record)].append(entry)
    if dataset is not None and protocols and dataset not in protocols:
        known = sorted(protocols)
        raise UnknownNameError("data set", dataset, known, more=f"choose from {', '.join(known)}")
    boards = []
    for key, members in sorted(groups.items(), key=lambda item: item[0]):
        if dataset in (None, key[0]):
            board = _board(members, metric, by, split, protocols[key[0]])
            boards += [board] if board.rows else []
    return boards


def _identity(entry: Entry) -> tuple[Any, ...]:
    record = entry.record
    return (
        entry.source,
        record.study,
        record.kind,
        record.number,
        record.config.seed,
        record.created,
        record.dataset.name,
        record.protocol.digest,
        record.config.digest(),
        record.state,
        tuple((split, scores.f1, scores.accuracy) for split, scores in sorted(record.scores.items())),
    )


def _board(
    members: Sequence[Entry],
    metric: Metric,
    by: By,
    split: Literal["auto", "val", "test"],
    protocols: Mapping[str, Protocol],
) -> Leaderboard:
    records = [entry.record for entry in members]
    complete = [record for record in records if record.state == "complete"]
    if split == "auto":
        split = "test" if any(r.kind == "final" and "test" in r.scores for r in complete) else "val"
    runs = gather_runs(members, split)
    scored = {run.first.study for run in runs if run.entries}
    if by == "backbone":
        rivals: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            rivals[run.first.config.backbone].append(run)
        runs = [_choose(group, metric) for group in rivals.values()]
    example = runs[0].first if runs else records[0]
    data, protocol = example.dataset, example.protocol
    return Leaderboard(
        dataset=data.name,
        split=split,
        metric=metric,
        by=by,
        protocol=protocol.digest,
        init=init_of(example),
        rows=tuple(_rank(runs, metric, digest([protocol.digest, split]))),
        floor=find_floor(data, split),
        counts={name: sum(counts) for name, counts in data.counts.items()},
        classes=data.classes,
        supported=sum(count > 0 for count in data.counts.get(split, ())),
        outcomes=dict(Counter(record.state for record in records if record.kind == "search")),
        finals=dict(Counter(record.state for record in records if record.kind == "final")),
        other=len(protocols.keys() - {protocol.digest}),
        differences=name_differences(protocol, list(protocols.values())),
        unranked=tuple(sorted({record.study for record in complete} - scored)),
    )


def _rank(runs: Sequence[Run], metric: Metric, key: str) -> list[Row]:
    """Return the rows, best group first; in a group the cheaper row comes first. The failed are the last."""
    bootstrap = Bootstrap(key, metric)
    value = {run: run.value(metric) for run in runs}
    price = {run: _price(run, value[run]) for run in runs}
    samples = {run: run.sample() for run in runs}
    groups: list[list[Run]] = []
    leader: Run | None = None
    for run in sorted(runs, key=lambda run: (not run.entries, -value[run], price[run])):
        if leader is None or not _shares_rank(run, leader, value, samples, bootstrap):
            groups.append([])
            leader = run
        groups[-1].append(run)
    rows: list[Row] = []
    for group in groups:
        place = len(rows) + 1
        for run in sorted(group, key=price.__getitem__):
            rows.append(run.row(metric, rank=place, has_answers=samples[run].labels is not None))
    return rows


def _shares_rank(
    run: Run, leader: Run, value: Mapping[Run, float], samples: Mapping[Run, Sample], bootstrap: Bootstrap
) -> bool:
    if not (run.entries and leader.entries):
        return not (run.entries or leader.entries)
    if value[leader] - value[run] <= TIE:
        return True
    return not bootstrap.difference(samples[leader], samples[run]).is_clear


def _choose(rivals: Sequence[Run], metric: Metric) -> Run:
    """Return the run that is best on val; of equals the cheaper. What failed is taken in need only."""
    candidates = [run for run in rivals if run.entries] or rivals
    best = max(run.choice(metric) for run in candidates)
    equals = [run for run in candidates if best - run.choice(metric) <= TIE]
    return min(equals, key=lambda run: _price(run, run.choice(metric)))


def _price(run: Run, value: float) -> tuple[Any, ...]:
    costs = [entry.record.cost for entry in run.entries if entry.record.cost]
    seconds = mean([cost.seconds for cost in costs]) if costs else math.inf
    params = costs[0].params if costs else math.inf
    first = run.first
    source = (run.entries or run.failed)[0].source
    return seconds, params, -value, first.config.backbone, first.study, first.number, source
