"""Rank runs: one table for each data set, protocol, split and way of initialising. Reads records only."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.errors import StorageError, UnknownNameError
from harness.leaderboard.board import By, Floor, Leaderboard, Row
from harness.records import DatasetRecord, Metric, Protocol, TrialRecord, read_record

__all__ = ["Floor", "Leaderboard", "Row", "load", "rank"]

TIE = 1e-12
"""Scores no further apart than this share a rank."""
BUILTIN = "transfer-harness"
"""The distribution whose optimizers, losses and so on a row does not name again."""


def load(runs: Path) -> tuple[list[TrialRecord], list[str]]:
    """Read all records of all studies under a folder.

    Returns:
        The records, and one line for each that is damaged, with its path and the reason.
    """
    records, problems = [], []
    for part in ("trials", "finals"):
        for path in sorted(runs.glob(f"*/{part}/*/record.json")):
            try:
                records.append(read_record(path))
            except StorageError as error:
                problems.append(f"{path}: {error.what}" + (f" ({error.why})" if error.why else ""))
    return records, problems


def rank(
    records: Iterable[TrialRecord],
    *,
    metric: Metric = "f1",
    by: By = "run",
    split: Literal["auto", "val", "test"] = "auto",
    dataset: str | None = None,
) -> list[Leaderboard]:
    """Rank runs, in as many tables as there are sets of comparable ones.

    Rows of different data sets, protocols or kinds of initialisation never share a table. A table without a
    row is left out. The order of `records` has no influence.

    Args:
        records: Of any studies, in any state; a record that is there twice counts once.
        metric: What decides the order: macro-F1 or accuracy.
        by: `run` gives each configuration of a study a row; `backbone` keeps each backbone's best run, chosen
            on the validation split so that the test split decides nothing.
        split: `test` ranks final trainings, `val` the trials of the search, `auto` the former where there
            are any.
        dataset: Only this one.

    Raises:
        UnknownNameError: There are records, but none of that data set.
    """
    unique = sorted({_identity(record): record for record in records}.items(), key=lambda item: item[0])
    protocols: dict[str, dict[str, Protocol]] = {record.dataset.name: {} for _, record in unique}
    groups: dict[tuple[str, str, str], list[TrialRecord]] = defaultdict(list)
    for _, record in unique:
        if record.state == "complete":
            protocols[record.dataset.name][record.protocol.digest] = record.protocol
        groups[record.dataset.name, record.protocol.digest, _init(record)].append(record)
    if dataset is not None and protocols and dataset not in protocols:
        known = sorted(protocols)
        raise UnknownNameError("data set", dataset, known, more=f"choose from {', '.join(known)}")
    boards = []
    for key, members in sorted(groups.items(), key=lambda item: item[0]):
        if dataset in (None, key[0]):
            board = _board(members, metric, by, split, protocols[key[0]])
            boards += [board] if board.rows else []
    return boards


def _identity(record: TrialRecord) -> tuple[Any, ...]:
    return (
        record.study,
        record.kind,
        record.number,
        record.config.seed,
        record.created,
        record.dataset.name,
        record.protocol.digest,
        record.config.digest(),
        record.state,
    )


def _init(record: TrialRecord) -> Literal["pretrained", "scratch"]:
    """What the training really started from; a trial that failed early knows only what it was told."""
    return record.weights.init if record.weights else record.config.init


def _board(
    members: Sequence[TrialRecord],
    metric: Metric,
    by: By,
    split: Literal["auto", "val", "test"],
    protocols: Mapping[str, Protocol],
) -> Leaderboard:
    complete = [record for record in members if record.state == "complete"]
    scored = [record for record in complete if record.kind == "final" and "test" in record.scores]
    if split == "auto":
        split = "test" if scored else "val"
    if split == "val":
        scored = [record for record in complete if record.kind == "search" and "val" in record.scores]
    runs: dict[tuple[str, str], list[TrialRecord]] = defaultdict(list)
    for record in scored:
        runs[record.study, record.config.digest()].append(record)
    rows = [
        (_row(run, split), _mean([_choice(record, metric, split) for record in run])) for run in runs.values()
    ]
    if by == "backbone":
        rivals: dict[str, list[tuple[Row, float]]] = defaultdict(list)
        for row, choice in rows:
            rivals[row.backbone].append((row, choice))
        kept = [_tiers(group)[0][0] for group in rivals.values()]
    else:
        kept = [row for row, _ in rows]
    ranked: list[Row] = []
    for tier in _tiers([(row, getattr(row, metric)) for row in kept]):
        ranked += [dataclasses.replace(row, rank=len(ranked) + 1) for row in tier]
    example = (scored or members)[0]
    data, protocol = example.dataset, example.protocol
    search = [record for record in members if record.kind == "search"]
    return Leaderboard(
        dataset=data.name,
        split=split,
        metric=metric,
        by=by,
        protocol=protocol.digest,
        init=_init(example),
        rows=tuple(ranked),
        floor=_floor(data, split),
        counts={name: sum(counts) for name, counts in data.counts.items()},
        classes=data.classes,
        supported=sum(count > 0 for count in data.counts.get(split, ())),
        outcomes=dict(Counter(record.state for record in search)),
        finals=dict(Counter(record.state for record in members if record.kind == "final")),
        other=len(protocols) - 1,
        differences=_differences(protocol, list(protocols.values())),
        unranked=tuple(sorted({record.study for record in complete} - {record.study for record in scored})),
    )


def _row(run: Sequence[TrialRecord], split: str) -> Row:
    """Average the trainings of one configuration; its rank is given later."""
    first = run[0]
    config = first.config
    scores = [record.scores[split] for record in run]
    costs = [record.cost for record in run if record.cost]
    return Row(
        rank=0,
        study=first.study,
        number=first.number,
        backbone=config.backbone,
        freeze_depth=config.freeze_depth,
        lr=config.lr,
        optimizer=config.optimizer,
        augmentation=config.augmentation,
        loss=config.loss,
        f1=_mean([score.f1 for score in scores]),
        f1_interval=_mean_interval([score.f1_interval for score in scores]),
        accuracy=_mean([score.accuracy for score in scores]),
        accuracy_interval=_mean_interval([score.accuracy_interval for score in scores]),
        seeds=len({record.config.seed for record in run}),
        params=costs[0].params if costs else None,
        trainable=costs[0].trainable if costs else None,
        seconds=_mean([cost.seconds for cost in costs]) if costs else None,
        device=", ".join(sorted({record.environment.get("device", "") for record in run} - {""})),
        plugin=_plugin(first),
        licence=_licence(first),
        init=_init(first),
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        head_init=config.head_init,
        epochs=config.epochs,
        batch_size=config.batch_size,
        image_size=config.image_size,
    )


def _choice(record: TrialRecord, metric: Metric, split: str) -> float:
    scores = record.scores.get("val") or record.scores[split]
    value: float = getattr(scores, metric)
    return value


def _tiers(valued: Sequence[tuple[Row, float]]) -> list[list[Row]]:
    """Sort by value, best first, into groups of equal value; in a group the cheaper row comes first."""
    tiers: list[list[Row]] = []
    best = math.inf
    for row, value in sorted(valued, key=lambda item: -item[1]):
        if not tiers or best - value > TIE:
            tiers.append([])
            best = value
        tiers[-1].append(row)
    return [sorted(tier, key=_price) for tier in tiers]


def _price(row: Row) -> tuple[Any, ...]:
    seconds = math.inf if row.seconds is None else row.seconds
    params = math.inf if row.params is None else row.params
    return seconds, params, row.backbone, row.study, row.number


def _plugin(record: TrialRecord) -> str:
    home = record.providers["backbone"].distribution if "backbone" in record.providers else ""
    others = {provider.distribution for provider in record.providers.values()} - {home, BUILTIN}
    return ", ".join([home] * bool(home) + sorted(others))


def _licence(record: TrialRecord) -> str:
    if _init(record) == "scratch":
        return "none"
    return (record.weights.licence if record.weights else "") or "unknown"


def _floor(data: DatasetRecord, split: str) -> Floor | None:
    train, counts = data.counts.get("train", ()), data.counts.get(split, ())
    if not sum(train) or not sum(counts):
        return None
    majority = train.index(max(train))
    total, hits = sum(counts), counts[majority]
    # Its precision is hits / total and its recall 1; every other class scores 0.
    f1 = 2 * hits / (total + hits) / sum(count > 0 for count in counts)
    return Floor(label=data.classes[majority], f1=f1, accuracy=hits / total)


def _differences(one: Protocol, others: Sequence[Protocol]) -> tuple[str, ...]:
    """Name the parts of the protocol in which `others` are not as `one`."""
    found = [
        f"{name} split"
        for name in ("train", "val", "test")
        if any(one.splits.get(name) != other.splits.get(name) for other in others)
    ]
    found += [
        name
        for name in ("classes", "decode", "metric", "selection")
        if any(getattr(one, name) != getattr(other, name) for other in others)
    ]
    return tuple(found)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_interval(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return _mean([low for low, _ in intervals]), _mean([high for _, high in intervals])
