"""Runs: the trainings of one configuration, which differ by their seed, and what their row says of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.leaderboard.board import Floor, Row
from harness.leaderboard.entry import TIERS, Entry
from harness.leaderboard.statistics import IntArray, Sample
from harness.metrics import point_scores
from harness.records import DatasetRecord, Metric, Scores, TrialRecord

BUILTIN = "transfer-harness"
"""The distribution whose optimizers, losses and so on a row does not name again."""
METRICS: tuple[Metric, ...] = ("f1", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The trainings of one configuration in one study, and their scores on one split."""

    split: Literal["val", "test"]
    entries: tuple[Entry, ...]
    """Those with scores on the split."""
    failed: tuple[Entry, ...]
    """Final trainings that failed; each counts with the score of the floor."""

    @property
    def first(self) -> TrialRecord:
        """Return a record that tells what all share."""
        return (self.entries or self.failed)[0].record

    @property
    def metric(self) -> Metric:
        """Return the metric that its study maximised."""
        return self.first.metric

    def values(self, metric: Metric, split: Literal["val", "test"] | None = None) -> list[float]:
        """Return the scores of all trainings, failed ones at the floor; none where one has no such score."""
        split = split or self.split
        scores = [entry.record.scores.get(split) for entry in self.entries]
        known = [getattr(score, metric) for score in scores if score]
        floor = find_floor(self.first.dataset, split)
        least = getattr(floor, metric) if floor else 0.0
        return known + [least] * len(self.failed) if len(known) == len(scores) else []

    def value(self, metric: Metric) -> float:
        """Return the mean score."""
        return mean(self.values(metric))

    def choice(self, metric: Metric) -> float:
        """Return what a run is chosen by: the mean score on val, where it is known."""
        return mean(self.values(metric, "val") or self.values(metric))

    def sample(self) -> Sample:
        """Return what the statistics need; answers only where they are there and give the scores recorded."""
        scores = {metric: np.array(self.values(metric)) for metric in METRICS}
        recorded = [entry.record.scores[self.split] for entry in self.entries]
        confusions = [np.array(score.confusion, dtype=np.int64) for score in recorded]
        labels, chosen = self._answers(recorded)
        if self.failed and confusions:
            support = confusions[0].sum(axis=1)
            train = self.first.dataset.counts.get("train", ())
            majority = train.index(max(train)) if sum(train) else int(support.argmax())
            constant = np.zeros_like(confusions[0])
            constant[:, majority] = support
            confusions += [constant] * len(self.failed)
            if labels is not None:
                chosen += [np.full_like(labels, majority)] * len(self.failed)
        return Sample(
            scores=scores,
            confusions=tuple(confusions),
            labels=labels,
            chosen=tuple(chosen),
            failed=len(self.failed),
        )

    def _answers(self, recorded: Sequence[Scores]) -> tuple[IntArray | None, list[IntArray]]:
        labels: IntArray | None = None
        chosen: list[IntArray] = []
        for entry, scores in zip(self.entries, recorded, strict=True):
            found = entry.answers().get(self.split)
            classes = len(scores.confusion)
            if found is None or not len(found.labels) == len(found.chosen) == scores.n:
                return None, []
            both = np.concatenate([found.labels, found.chosen])
            if both.min() < 0 or both.max() >= classes:
                return None, []
            points = point_scores(found.labels, found.chosen, classes)
            stated = scores.accuracy, scores.f1
            if not np.allclose(points, stated, rtol=0, atol=1e-9):
                return None, []
            if labels is not None and not np.array_equal(labels, found.labels):
                return None, []
            labels = found.labels
            chosen.append(found.chosen)
        return labels, chosen

    def row(self, metric: Metric, *, rank: int, has_answers: bool) -> Row:
        """Return the row of a board that is ranked by a metric."""
        first, config = self.first, self.first.config
        records = [entry.record for entry in self.entries]
        scores = [record.scores[self.split] for record in records]
        costs = [record.cost for record in records if record.cost]
        value = {name: self.values(name) for name in METRICS}
        val = self.values(metric, "val")
        least = {name: [(score, score) for score in value[name][len(scores) :]] for name in METRICS}
        return Row(
            rank=rank,
            source=(self.entries or self.failed)[0].source,
            tier=min((entry.tier for entry in (self.entries or self.failed)), key=TIERS.index),
            study=first.study,
            number=first.number,
            backbone=config.backbone,
            freeze_depth=config.freeze_depth,
            lr=config.lr,
            optimizer=config.optimizer,
            augmentation=config.augmentation,
            loss=config.loss,
            f1=mean(value["f1"]),
            f1_interval=_mean_interval([score.f1_interval for score in scores] + least["f1"]),
            f1_spread=_spread(value["f1"][: len(scores)]),
            accuracy=mean(value["accuracy"]),
            accuracy_interval=_mean_interval([s.accuracy_interval for s in scores] + least["accuracy"]),
            accuracy_spread=_spread(value["accuracy"][: len(scores)]),
            val=mean(val) if val else None,
            gap=mean(val) - mean(value[metric]) if val and self.split == "test" else None,
            seeds=len({record.config.seed for record in records}),
            failed=len(self.failed),
            has_answers=has_answers,
            params=costs[0].params if costs else None,
            trainable=costs[0].trainable if costs else None,
            seconds=mean([cost.seconds for cost in costs]) if costs else None,
            device=", ".join(sorted({record.environment.get("device", "") for record in records} - {""})),
            plugin=_plugin(first),
            licence=_licence(first),
            init=init_of(first),
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            head_init=config.head_init,
            epochs=config.epochs,
            batch_size=config.batch_size,
            image_size=config.image_size,
        )


def gather_runs(entries: Iterable[Entry], split: Literal["val", "test"]) -> list[Run]:
    """Group entries of one protocol into runs, by bundle, study and configuration.

    On test these are final trainings, also those that failed; on val complete trials of the search.
    """
    kind = "final" if split == "test" else "search"
    scored: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    failed: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        record = entry.record
        key = entry.source, record.study, record.config.digest()
        if record.kind == kind and record.state == "complete" and split in record.scores:
            scored[key].append(entry)
        elif record.kind == kind == "final" and record.state == "failed":
            failed[key].append(entry)
    runs = []
    for key in sorted({*scored, *failed}):
        done = {entry.record.config.seed for entry in scored[key]}
        # One that failed and came out when it was repeated did not fail.
        lost = {e.record.config.seed: e for e in failed[key] if e.record.config.seed not in done}
        runs.append(Run(split=split, entries=tuple(scored[key]), failed=tuple(lost.values())))
    return runs


def init_of(record: TrialRecord) -> Literal["pretrained", "scratch"]:
    """Return what a training really started from; one that failed early knows only what it was told."""
    return record.weights.init if record.weights else record.config.init


def find_floor(data: DatasetRecord, split: str) -> Floor | None:
    """Return what always answering the class most frequent in training scores; None without class counts."""
    train, counts = data.counts.get("train", ()), data.counts.get(split, ())
    if not sum(train) or not sum(counts):
        return None
    majority = train.index(max(train))
    total, hits = sum(counts), counts[majority]
    # Its precision is hits / total and its recall 1; every other class scores 0.
    f1 = 2 * hits / (total + hits) / sum(count > 0 for count in counts)
    return Floor(label=data.classes[majority], f1=f1, accuracy=hits / total)


def mean(values: Sequence[float]) -> float:
    """Return the mean, the same in any order."""
    return math.fsum(values) / len(values)


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _mean_interval(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return mean([low for low, _ in intervals]), mean([high for _, high in intervals])


def _plugin(record: TrialRecord) -> str:
    home = record.providers["backbone"].distribution if "backbone" in record.providers else ""
    others = {provider.distribution for provider in record.providers.values()} - {home, BUILTIN}
    return ", ".join([home] * bool(home) + sorted(others))


def _licence(record: TrialRecord) -> str:
    if init_of(record) == "scratch":
        return "none"
    return (record.weights.licence if record.weights else "") or "unknown"
