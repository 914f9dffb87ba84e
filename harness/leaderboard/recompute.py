"""What one record of a bundle states, beside what its answers give."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import metrics
from harness.leaderboard.bundle import TOP, PackedAnswers
from harness.predictions import FILE
from harness.records import CostRecord, Scores, TrialRecord
from harness.samples import Samples

TOLERANCE = 1e-9
"""How far a stated score may be from the recomputed one."""
SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLITS = ["test", "val"]
_LARGEST = 2.0**63
"""Of any number: means of larger ones need not be numbers."""
_HALF = 1e-3
"""Half precision rounds each score by less than this share."""
_LONGEST = 60

Chosen = npt.NDArray[np.int64]


def record_problems(record: TrialRecord) -> Iterator[str]:
    """Yield what of a record cannot be."""
    if not SHA256.fullmatch(record.model):
        yield "the hash of its weights is no SHA-256"
    if not SHA256.fullmatch(record.predictions.get(FILE, "")):
        yield "the hash of its predictions is no SHA-256"
    if record.weights is None:
        yield "it does not say which weights it started from"
    elif record.weights.init != record.config.init:
        yield f"it started from {record.weights.init} weights, its configuration says {record.config.init}"
    elif record.weights.init == "pretrained":
        if not SHA256.fullmatch(record.weights.sha256):
            yield "the hash of the weights it started from is no SHA-256"
        if not record.weights.licence:
            yield "the licence of the weights it started from is missing"
    yield from _common_problems(record)
    yield from (["its cost is missing"] if record.cost is None else _cost_problems(record.cost))
    epochs = [epoch.epoch for epoch in record.curve]
    if len(epochs) != record.config.epochs:
        yield f"its learning curve has {len(epochs)} epochs, its configuration {record.config.epochs}"
    elif epochs != list(range(1, len(epochs) + 1)) or not epochs:
        yield "the epochs of its learning curve are not counted from 1"
    elif "val" in record.scores:
        last, scores = record.curve[-1], record.scores["val"]
        for name, end, score in (
            ("accuracy", last.val_accuracy, scores.accuracy),
            ("f1", last.val_f1, scores.f1),
        ):
            if not _is_close(end, score):
                yield f"its learning curve ends at val {name} {end!r}, its score is {score!r}"
    if sorted(record.scores) != _SPLITS:
        yield f"it has scores of {', '.join(sorted(record.scores)) or 'nothing'}, not of val and test"


def failure_problems(record: TrialRecord) -> Iterator[str]:
    """Yield what of the record of a training that failed cannot be."""
    if record.scores:
        yield "it failed, and has scores"
    if record.weights is not None and record.weights.init != record.config.init:
        yield f"it started from {record.weights.init} weights, its configuration says {record.config.init}"
    yield from _common_problems(record)
    yield from [] if record.cost is None else _cost_problems(record.cost)


def _common_problems(record: TrialRecord) -> Iterator[str]:
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        yield f"it was created at {record.created[:40]!r}, which is no time"
    if record.number < 0:
        yield f"its trial has the number {record.number}"
    bounds = {
        "freeze_depth": (0, 1),
        "lr": (math.ulp(0), _LARGEST),
        "weight_decay": (0, _LARGEST),
        "epochs": (1, _LARGEST),
        "batch_size": (1, _LARGEST),
        "image_size": (1, _LARGEST),
        "warmup": (0, 1),
        "ema": (0, 1),
        "clip_grad": (0, _LARGEST),
        "seed": (0, _LARGEST),
    }
    for name, (low, high) in bounds.items():
        value = getattr(record.config, name)
        if not low <= value <= high:
            yield f"its configuration cannot be: {name} {value!r}"
    for epoch in record.curve:
        scores = (epoch.val_accuracy, epoch.val_f1)
        if not all(0 <= score <= 1 for score in scores):
            yield f"epoch {epoch.epoch} of its learning curve cannot be: val accuracy and f1 {scores}"
            # One is enough, and there may be many.
            return


def _cost_problems(cost: CostRecord) -> Iterator[str]:
    counted = {
        "seconds": cost.seconds,
        "total_seconds": cost.total_seconds,
        "images_per_second": cost.images_per_second,
        "params": cost.params,
        "trainable": cost.trainable,
        "flops": cost.flops or 0.0,
        "prefix_passes": cost.prefix_passes,
        "prefix_seconds": cost.prefix_seconds,
        "peak_memory": cost.peak_memory,
        "micro_batch": cost.micro_batch,
    }
    for name, value in counted.items():
        if not 0 <= value <= _LARGEST:
            yield f"its cost is no cost: {name} {value!r}"
    shares = {"frozen_param_share": cost.frozen_param_share, "frozen_flop_share": cost.frozen_flop_share}
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            yield f"its cost is no cost: {name} {share!r}"
    if cost.trainable > cost.params:
        yield f"its cost is no cost: {cost.trainable} of {cost.params} parameters train"


def score_problems(record: TrialRecord, split: str, packed: PackedAnswers, samples: Samples) -> Iterator[str]:
    """Yield what of the answers cannot be, or in what the scores of a split are not theirs."""
    size = len(record.dataset.classes)
    try:
        chosen = _chosen(packed, len(samples.ids), size)
    except ValueError as error:
        yield f"{split} predictions: {error}"
        return
    stated = record.scores.get(split)
    if stated is None:
        return
    # Before anything of that size is computed: the file has to hold as much.
    if len(stated.confusion) != size or any(len(row) != size for row in stated.confusion):
        yield f"{split} confusion matrix is not of {size} classes"
        return
    found = metrics.evaluate(np.array(samples.labels, dtype=np.int64), chosen, size)
    for name, one, other in _score_pairs(stated, found):
        if not _is_close(one, other):
            yield f"{split} {name} is {_shown(one)}, its predictions give {_shown(other)}"


def _chosen(packed: PackedAnswers, count: int, size: int) -> Chosen:
    """Return the class answered for each image.

    Raises:
        ValueError: The answers are damaged, not for these images, or no probabilities.
    """
    if packed.k != min(TOP, size):
        raise ValueError(f"{packed.k} classes of each answer, there must be {min(TOP, size)}")
    classes, scores = packed.unpack()
    if len(classes) != count:
        raise ValueError(f"{len(classes)} answers for {count} images")
    if not ((classes >= 0) & (classes < size)).all():
        raise ValueError(f"a class is none of {size}")
    if (np.diff(np.sort(classes, axis=1), axis=1) == 0).any():
        raise ValueError("an answer names a class twice")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if ((scores < 0) | (scores > 1)).any() or (scores.sum(axis=1) > 1 + _HALF).any():
        raise ValueError("scores are no probabilities")
    if packed.k == size and (scores.sum(axis=1) < 1 - _HALF).any():
        raise ValueError("scores of all classes do not sum to 1")
    if (np.diff(scores, axis=1) > 0).any():
        raise ValueError("scores do not decrease")
    best: Chosen = classes[:, 0]
    return best


def _score_pairs(stated: Scores, found: Scores) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, stated, recomputed) of each score."""
    for name in ("n", "accuracy", "precision", "recall", "f1"):
        yield name, getattr(stated, name), getattr(found, name)
    for name in ("accuracy_interval", "f1_interval", "confusion"):
        yield name.replace("_", " "), getattr(stated, name), getattr(found, name)
    for name in ("precision", "recall", "f1", "support"):
        yield f"{name} by class", getattr(stated.per_class, name), getattr(found.per_class, name)


def _is_close(one: Any, other: Any) -> bool:
    try:
        left, right = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    except OverflowError:
        return False
    # NaN is not within any distance.
    return left.shape == right.shape and bool((np.abs(left - right) <= TOLERANCE).all())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < _LONGEST else text[: _LONGEST - 3] + "..."
