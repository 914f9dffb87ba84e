"""What the published page knows of a run: its bundle, summed up in some hundred numbers.

Everything is made safe and small here, so that the page only draws: names are inert, scores are in
ten-thousandths, and lists of small numbers are packed into text (`pack`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.documents import canonical
from harness.leaderboard.bundle import Bundle
from harness.leaderboard.runs import find_floor
from harness.records import EpochRecord, TrialRecord
from harness.text import safe_text

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
BINS = 15
"""Of the reliability diagram, equally wide (Guo et al. 2017, On Calibration of Modern Neural Networks)."""
GRID = 32
"""Up to so many classes the confusion matrix is whole; above, it is summed into so many groups of them."""
LARGEST = 40
"""Confusions that are listed then."""
MISTAKES = 6
POINTS = 100
"""Most points of a learning curve that are kept."""
_LIMIT = 2**31 - 1

Json: TypeAlias = Any
IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Values that many runs have in common, each kept once and named by its place."""

    values: list[Json] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, value: Json) -> int:
        """Return where a value stands, after putting it there if need be."""
        key = canonical(value)
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


def pack(numbers: Iterable[int]) -> str:
    """Write integers from 0 to 2^31 - 1 as text, those below 32 in one sign; others are cut to that range.

    Five bits a sign, the lowest first; a sign of 32 or more says that the number goes on.
    """
    signs = []
    for number in numbers:
        rest = min(max(int(number), 0), _LIMIT)
        while rest > 31:
            signs.append(DIGITS[32 + rest % 32])
            rest //= 32
        signs.append(DIGITS[rest])
    return "".join(signs)


def summarise_run(bundle: Bundle, shared: Shared) -> dict[str, Json]:
    """Sum up a bundle for its panel.

    Args:
        bundle: Verified.
        shared: Where what other runs have too is kept.

    Returns:
        JSON of a few kilobytes: config, scores of each seed, cost, learning curves, confusions on test over
        all complete seeds, F1 of each class from these, calibration, surest mistakes, and provenance.
    """
    first = bundle.records[0]
    weights, cost = first.weights, first.cost
    return {
        "study": safe_text(first.study),
        "number": first.number,
        "created": safe_text(min(record.created for record in bundle.records)),
        "config": [_plain(value) for value in dataclasses.asdict(first.config).values()],
        "seeds": [
            [record.config.seed, *(_share(value) for value in _points(record))] for record in bundle.records
        ]
        + [[f"{record.config.seed}, failed", *map(_share, _least(record))] for record in bundle.failed],
        "cost": None if cost is None else [_plain(value) for value in dataclasses.asdict(cost).values()],
        "curves": [_curve(record.curve) for record in bundle.records],
        "confusion": _confusions(bundle),
        **_answered(bundle, shared),
        "providers": shared.place(
            [[safe_text(kind), *_texts(provider)] for kind, provider in sorted(first.providers.items())]
        ),
        "weights": None if weights is None else shared.place(_texts(weights)),
        "environment": shared.place(_pairs(first.environment)),
        "packages": shared.place(_pairs(first.packages)),
        "trials": shared.place(_pairs(bundle.trials)),
    }


def _plain(value: object) -> Json:
    """Return a number in six digits, and text that is inert."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if value is None or isinstance(value, int) else safe_text(value)


def _texts(value: Any) -> list[str]:
    return [safe_text(getattr(value, item.name)) for item in dataclasses.fields(value)]


def _pairs(values: Mapping[str, object]) -> list[list[str]]:
    return [[safe_text(name), safe_text(value)] for name, value in sorted(values.items())]


def _share(value: float | None) -> int | None:
    return None if value is None else round(10_000 * value)


def _points(record: TrialRecord) -> list[float | None]:
    """Macro-F1 and accuracy on validation, then on test."""
    return [
        getattr(record.scores[split], metric) if split in record.scores else None
        for split in ("val", "test")
        for metric in ("f1", "accuracy")
    ]


def _least(record: TrialRecord) -> list[float]:
    """Return what a training that failed counts with, in the order of `_points`: the floor."""
    floors = [find_floor(record.dataset, split) for split in ("val", "test")]
    return [value for floor in floors for value in ((floor.f1, floor.accuracy) if floor else (0.0, 0.0))]


def _curve(curve: Sequence[EpochRecord]) -> Json:
    """Losses in four digits, then macro-F1 and accuracy on validation as packed thousandths."""
    if len(curve) > POINTS:
        curve = [curve[round(step)] for step in np.linspace(0, len(curve) - 1, POINTS)]
    return [
        [epoch.epoch for epoch in curve[-1:]],
        [float(f"{epoch.train_loss:.4g}") for epoch in curve],
        pack(round(1000 * epoch.val_f1) for epoch in curve),
        pack(round(1000 * epoch.val_accuracy) for epoch in curve),
    ]


def _confusions(bundle: Bundle) -> Json:
    """Sum the test confusions of all seeds: F1 in thousandths and support by class, then the cells."""
    matrices = [record.scores["test"].confusion for record in bundle.records if "test" in record.scores]
    if not matrices:
        return None
    total = np.sum([np.asarray(matrix, dtype=np.int64) for matrix in matrices], axis=0)
    hits, support, predicted = np.diagonal(total), total.sum(axis=1), total.sum(axis=0)
    both = support + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros(len(total)), where=both > 0)
    found = {"f1": pack(np.rint(1000 * f1).astype(int)), "support": pack(support)}
    if len(total) <= GRID:
        return {**found, "cells": _sparse(total.ravel())}
    errors = total.copy()
    np.fill_diagonal(errors, 0)
    largest = [
        cell for cell in np.argsort(-errors, axis=None, kind="stable")[:LARGEST] if errors.flat[cell] > 0
    ]
    pairs = [(cell // len(total), cell % len(total), errors.flat[cell]) for cell in largest]
    starts = np.linspace(0, len(total), GRID, endpoint=False).astype(int)
    coarse = np.add.reduceat(np.add.reduceat(total, starts, axis=0), starts, axis=1)
    return {
        **found,
        "largest": pack(number for pair in pairs for number in pair),
        "rest": [int(errors.sum() - sum(count for *_, count in pairs)), int(total.sum())],
        "coarse": _sparse(coarse.ravel()),
    }


def _sparse(cells: IntArray) -> str:
    """Pack the cells that are not 0, each as the number of zeros before it and its value."""
    places = np.flatnonzero(cells)
    gaps = np.diff(places, prepend=-1) - 1
    return pack(np.stack([gaps, cells[places]], axis=1).ravel())


def _answered(bundle: Bundle, shared: Shared) -> dict[str, Json]:
    """Calibration of the answered class on test over all seeds, and the surest mistakes."""
    samples = bundle.samples.get("test")
    parts = [answers["test"].unpack() for answers in bundle.answers if "test" in answers]
    if samples is None or not samples.labels or not parts:
        return {"calibration": None, "mistakes": []}
    labels = np.tile(np.asarray(samples.labels, dtype=np.int64), len(parts))
    chosen = np.concatenate([classes[:, 0] for classes, _ in parts])
    sure = np.concatenate([scores[:, 0] for _, scores in parts]).astype(np.float64)
    right = chosen == labels
    places = np.clip((sure * BINS).astype(int), 0, BINS - 1)
    counts, sums, hits = (
        np.bincount(places, weights=values, minlength=BINS) for values in (np.ones(len(sure)), sure, right)
    )
    error = np.abs(sums - hits).sum() / len(sure)
    means = np.divide(sums, counts, out=np.zeros(BINS), where=counts > 0)
    bins = zip(counts, hits, np.rint(1000 * means), strict=True)
    mistakes: dict[int, list[Json]] = {}
    for answer in np.flatnonzero(~right)[np.argsort(-sure[~right], kind="stable")]:
        image = int(answer) % len(samples.labels)
        if image not in mistakes:
            name = shared.place(safe_text(samples.ids[image]))
            score = round(1000 * float(sure[answer]))
            mistakes[image] = [name, int(labels[answer]), int(chosen[answer]), score]
        if len(mistakes) == MISTAKES:
            break
    return {
        "calibration": [_share(float(error)), pack(int(number) for bin in bins for number in bin)],
        "mistakes": list(mistakes.values()),
    }
